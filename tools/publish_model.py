"""Publish a checkpoint as OpenMMLab's model zoos do, and print its metafile entry.

The file has the weights, classes and colors, the config without paths of this machine,
and versions, but no optimizer and no history. Its name NAME-XXXXXXXX.pth ends with the
first digits of its SHA-256. No code of the checkpoint is run, no file is overwritten.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent

from _cli import run

import yaml
from torch import Tensor

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import read_checkpoint, write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.publish import as_strings, published_meta, published_weights
from mmsparse.checkpoint.state_dict import load_state_dict
from mmsparse.errors import UsageError


def main() -> None:
    publish(parse_args())


def publish(args: argparse.Namespace) -> None:
    name = args.name or Path(args.config or args.checkpoint).stem
    if Path(name).name != name:
        raise UsageError(f'--name must be a name without a folder; got {name!r}')
    checkpoint = read_checkpoint(args.checkpoint)
    try:
        weights = published_weights(checkpoint, args.ema, args.half)
    except ValueError as error:
        raise UsageError(f'{args.checkpoint}: {error}') from error
    entry: dict = dict(Name=name)
    config_text = None
    if args.config:
        cfg = read_config(args.config)
        config_text = cfg.pretty_text
        model = build_model(cfg)
        if mismatch := load_state_dict(model, weights):
            raise UsageError(f'{args.checkpoint} does not fit --config; {mismatch}')
        entry = dict(
            Name=Path(args.config).stem,
            Config=os.path.relpath(args.config),
            Metadata=dict(Parameters=sum(x.numel() for x in model.parameters())),
        )
    meta = published_meta(checkpoint, config_text)
    if args.format == 'safetensors':
        meta = as_strings(meta)
    path = write(Path(args.out), name, args.format, weights, meta)
    print(f'{len(weights)} entries, {path.stat().st_size / 1e6:.1f} MB: {path}')
    entry['Weights'] = f'{args.url.rstrip("/")}/{path.name}' if args.url else path.name
    print('Entry for a metafile:')
    text = yaml.safe_dump([entry], sort_keys=False, allow_unicode=True)
    print(indent(text, '  '), end='')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--config', help='config that the weights must fit; also names the file'
    )
    parser.add_argument(
        '--name', help='name of the file, instead of that of the config'
    )
    parser.add_argument('--out', required=True, metavar='DIR', help='output folder')
    parser.add_argument(
        '--format', choices=('pth', 'safetensors'), default='pth', help='default: pth'
    )
    parser.add_argument(
        '--half', action='store_true', help='store weights in half precision'
    )
    parser.add_argument(
        '--ema',
        action=argparse.BooleanOptionalAction,
        help='publish the averages of EMAHook, or the weights before averaging; '
        'default: those that mmengine loads, which are averages if there are any',
    )
    parser.add_argument(
        '--url', help='web address of the folder, for the metafile entry'
    )
    return parser.parse_args()


def write(
    out: Path, name: str, suffix: str, weights: dict[str, Tensor], meta: dict
) -> Path:
    """Write the file under a name with its hash."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.', dir=out) as folder:
        unnamed = Path(folder, f'{name}.{suffix}')
        write_checkpoint(unnamed, weights, meta)
        path = out / f'{name}-{sha256(unnamed)[:8]}.{suffix}'
        if path.exists():
            raise UsageError(f'{path} exists; nothing was written')
        unnamed.rename(path)
    return path


if __name__ == '__main__':
    run(main, OSError, ValueError)
