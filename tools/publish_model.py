"""Make a checkpoint ready to be handed on, as OpenMMLab's model zoos have them.

Kept are the weights, classes and colors, the configuration without the paths of this
machine, and versions; the optimizer and the history of the training are left out. The
file is named NAME-XXXXXXXX.pth by the first digits of its SHA-256. No code of the
checkpoint is run, and no file is overwritten.
"""

import argparse
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import indent
from typing import Any

import yaml
from mmengine.model import BaseModel
from torch import Tensor

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import read_checkpoint, write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.checkpoint.publish import as_strings, published_meta, published_weights
from mmsparse.checkpoint.state_dict import listed
from mmsparse.errors import UsageError, format_error


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
        help='metafile.yml; Weights is added to the model of the name of the config, '
        'and the model, too, if it is not there',
    )
    return parser.parse_args()


def publish(args: argparse.Namespace) -> None:
    name = args.name or Path(args.config or args.checkpoint).stem
    if Path(name).name != name:
        raise UsageError(f'--name must be a name without a folder; got {name!r}')
    if args.metafile and not args.url:
        raise UsageError('--metafile needs --url, from where mim can download the file')
    entry = dict(Name=Path(args.config).stem if args.config else name)
    checkpoint = read_checkpoint(args.checkpoint)
    try:
        weights = published_weights(checkpoint, args.ema, args.half)
    except ValueError as error:
        raise UsageError(f'{args.checkpoint}: {error}') from error
    cfg = read_config(args.config) if args.config else None
    if cfg is not None:
        model = build_model(cfg)
        check_fit(weights, model, args.checkpoint)
        parameters = sum(x.numel() for x in model.parameters())
        entry |= dict(
            Config=os.path.relpath(args.config), Metadata=dict(Parameters=parameters)
        )
    if args.metafile:
        with_weights(Path(args.metafile), dict(entry, Weights='any'))
    meta = published_meta(checkpoint, cfg.pretty_text if cfg else None)
    if args.format == 'safetensors':
        meta = as_strings(meta)
    path = write(Path(args.out), name, args.format, weights, meta)
    print(f'{len(weights)} entries, {path.stat().st_size / 1e6:.1f} MB: {path}')
    entry['Weights'] = f'{args.url.rstrip("/")}/{path.name}' if args.url else path.name
    if args.metafile:
        metafile = Path(args.metafile)
        metafile.write_bytes(with_weights(metafile, entry).encode())
        print(f'written: {metafile}')
    else:
        print('for a metafile:')
        print(f'  - Name: {entry["Name"]}\n    Weights: {entry["Weights"]}')


def check_fit(weights: dict[str, Tensor], model: BaseModel, path: str) -> None:
    """Raise UsageError unless the model of the configuration takes the weights."""
    own = model.state_dict()
    faults = dict(
        missing=[key for key in own if key not in weights],
        unexpected=[key for key in weights if key not in own],
        misshapen=[k for k, x in own.items() if weights.get(k, x).shape != x.shape],
    )
    if any(faults.values()):
        lists = (f'{kind} keys: {listed(x)}' for kind, x in faults.items() if x)
        raise UsageError(f'{path} does not fit --config; {"; ".join(lists)}')


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


def with_weights(metafile: Path, entry: dict[str, Any]) -> str:
    """Add Weights to a model of a metafile, and the model if it is not there.

    Args:
        metafile: The file.
        entry: What is written of a new model; of another, Weights alone.

    Returns:
        The text of the file; what was there is as it was.

    Raises:
        UsageError: The file is missing or written in another way than ours, or the
            model has weights, or is new and has no configuration.
    """
    if not metafile.is_file():
        raise UsageError(f'--metafile: no such file: {metafile}')
    text, name = metafile.read_bytes().decode(), entry['Name']
    try:
        content = yaml.safe_load(text)
        models = {model['Name']: model for model in content['Models'] or ()}
        collections = [x['Name'] for x in content.get('Collections') or ()]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise UsageError(
            f'--metafile: {metafile} has no Models with Names: {format_error(error)}'
        ) from error
    if name in models:
        if 'Weights' in models[name]:
            raise UsageError(
                f'--metafile: {name} has Weights already, {models[name]["Weights"]!r}; '
                'remove the line'
            )
        models[name]['Weights'] = entry['Weights']
        row, lines = f'  - Name: {name}', f'    Weights: {entry["Weights"]}\n'
    elif 'Config' in entry:
        if len(collections) == 1:
            entry = {'Name': name, 'In Collection': collections[0], **entry}
        content['Models'] = [*(content['Models'] or ()), entry]
        row, lines = (
            'Models:',
            indent(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True), '  '),
        )
    else:
        raise UsageError(
            f'--metafile has no model of the name {name}; --config lets it be added'
        )
    new = insert(text, row, lines)
    if parsed(new) != content:
        raise UsageError(
            f'--metafile: {metafile} is not indented as ours are; add by hand: {entry}'
        )
    return new


def insert(text: str, row: str, added: str) -> str:
    """Add lines to the end of what stands below a row of Models, if it is there."""
    lines = text.splitlines(keepends=True)
    rows = [line.rstrip() for line in lines]
    if 'Models:' not in rows or row not in rows[rows.index('Models:') :]:
        return text
    stop = rows.index(row, rows.index('Models:')) + 1
    below = ' ' * (len(row) - len(row.lstrip()) + 2)
    for number in range(stop, len(rows)):
        if rows[number].startswith(below):
            stop = number + 1
        elif rows[number] and not rows[number].startswith('#'):
            break
    if not lines[stop - 1].endswith('\n'):
        lines[stop - 1] += '\n'
    return ''.join([*lines[:stop], added, *lines[stop:]])


def parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


if __name__ == '__main__':
    main()
