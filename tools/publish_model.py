"""Make a checkpoint ready to be handed on, as OpenMMLab's model zoos have them.

Kept are the weights, classes and colours, the configuration without the paths of this
machine, and versions; the optimizer and the history of the training are left out. The
file is named NAME-XXXXXXXX.pth by the first digits of its SHA-256. No code of the
checkpoint is run, and no file is overwritten.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config
from torch import Tensor

from mmsparse.checkpoint import read_checkpoint, write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.names import listed
from mmsparse.checkpoint.publish import as_strings, published_meta, published_weights
from mmsparse.hosts import UsageError, build_model, read_config


def main() -> None:
    args = parse_args()
    try:
        publish(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--config',
        help='configuration file, which the weights must fit; gives the file its name',
    )
    parser.add_argument(
        '--name', help='what the file is called, in place of the name of the config'
    )
    parser.add_argument(
        '--out', required=True, metavar='DIR', help='folder for the file'
    )
    parser.add_argument(
        '--format', choices=('pth', 'safetensors'), default='pth', help='pth by default'
    )
    parser.add_argument(
        '--half', action='store_true', help='store weights in half precision'
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='the averages of EMAHook, or the weights without averaging; by default '
        'what the hosts load: averages if there are any',
    )
    parser.add_argument(
        '--url',
        metavar='URL',
        help='where the folder will be on the web; the metafile entry has the address',
    )
    parser.add_argument(
        '--metafile',
        metavar='FILE',
        help='metafile.yml with a model of the name of the config; Weights is added',
    )
    return parser.parse_args()


def publish(args: argparse.Namespace) -> None:
    name = args.name or Path(args.config or args.checkpoint).stem
    if args.metafile and not args.url:
        raise UsageError('--metafile needs --url, from where mim can download the file')
    entry = Path(args.config).stem if args.config else name
    if args.metafile:
        check_entry(Path(args.metafile), entry)
    checkpoint = read_checkpoint(args.checkpoint)
    try:
        weights = published_weights(checkpoint, args.ema, args.half)
    except ValueError as error:
        raise UsageError(f'{args.checkpoint}: {error}') from error
    cfg = read_config(args.config) if args.config else None
    if cfg is not None:
        check_fit(weights, cfg, args.checkpoint)
    meta = published_meta(checkpoint, cfg.pretty_text if cfg else None)
    if args.format == 'safetensors':
        meta = as_strings(meta)
    path = write(Path(args.out), name, args.format, weights, meta)
    print(f'{len(weights)} entries, {path.stat().st_size / 1e6:.1f} MB: {path}')
    address = f'{args.url.rstrip("/")}/{path.name}' if args.url else path.name
    if args.metafile:
        add_weights(Path(args.metafile), entry, address)
        print(f'written: {args.metafile}')
    else:
        print(f'for a metafile:\n  - Name: {entry}\n    Weights: {address}')


def check_fit(weights: dict[str, Tensor], cfg: Config, path: str) -> None:
    """Raise UsageError unless the model of the configuration takes the weights."""
    own = build_model(cfg).state_dict()
    faults = dict(
        missing=[key for key in own if key not in weights],
        unexpected=[key for key in weights if key not in own],
        misshapen=[k for k, x in own.items() if weights.get(k, x).shape != x.shape],
    )
    if any(faults.values()):
        told = (f'{kind} keys: {listed(keys)}' for kind, keys in faults.items() if keys)
        raise UsageError(f'{path} does not fit --config; {"; ".join(told)}')


def write(
    out: Path, name: str, suffix: str, weights: dict[str, Tensor], meta: dict
) -> Path:
    """Write the file under the name that its content gives it."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.', dir=out) as folder:
        unnamed = Path(folder, f'{name}.{suffix}')
        write_checkpoint(unnamed, weights, meta)
        path = out / f'{name}-{sha256(unnamed)[:8]}.{suffix}'
        if path.exists():
            raise UsageError(f'{path} exists; nothing was written')
        unnamed.rename(path)
    return path


def check_entry(metafile: Path, name: str) -> None:
    """Raise UsageError unless a metafile has a model without weights."""
    if not metafile.is_file():
        raise UsageError(f'--metafile: no such file: {metafile}')
    lines = metafile.read_text().splitlines(keepends=True)
    for line in lines[find_entry(lines, name)]:
        if line.startswith('    Weights:'):
            raise UsageError(
                f'--metafile: {name} has {line.strip()!r} already; remove the line'
            )


def add_weights(metafile: Path, name: str, address: str) -> None:
    """Add a line to a model's entry; the rest of the file stays as it is."""
    lines = metafile.read_text().splitlines(keepends=True)
    lines.insert(find_entry(lines, name).stop, f'    Weights: {address}\n')
    metafile.write_text(''.join(lines))


def find_entry(lines: list[str], name: str) -> slice:
    """Find the lines of a model in a metafile."""
    try:
        start = lines.index(f'  - Name: {name}\n', lines.index('Models:\n'))
    except ValueError as error:
        raise UsageError(f'--metafile has no model of the name {name}') from error
    stop = start + 1
    while stop < len(lines) and lines[stop].startswith('    '):
        stop += 1
    return slice(start, stop)


if __name__ == '__main__':
    main()
