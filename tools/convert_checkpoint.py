"""Convert an official checkpoint to weights for mmpretrain, mmdet or mmseg."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from _cli import run

from mmsparse import __version__
from mmsparse.checkpoint import read_checkpoint, write_checkpoint
from mmsparse.checkpoint.files import sha256
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import DETECTORS, FAMILIES
from mmsparse.errors import UsageError


def main() -> None:
    convert_file(parse_args())


def convert_file(args: argparse.Namespace) -> None:
    source, target = Path(args.source), Path(args.target)
    if target.exists() and not args.force:
        raise ValueError(f'{target} exists; --force overwrites it.')
    checkpoint = read_checkpoint(source)
    digest = sha256(source)
    print(f'{source}: {describe(checkpoint)}; SHA-256 {digest}')
    try:
        converted = convert(
            checkpoint, args.family, args.arch, args.backbone_only, args.class_ids
        )
    except ValueError as error:
        raise UsageError(f'{source}: {error}') from error
    weights = converted.state_dict
    parts = sorted({key.partition('.')[0] for key in weights})
    print(
        f'{converted.family} {converted.arch}: {len(weights)} entries of '
        f'{" and ".join(parts)}'
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    meta = dict(
        family=converted.family,
        arch=str(converted.arch),
        source=source.name,
        source_sha256=digest,
        mmsparse_version=__version__,
    )
    if target.suffix != '.safetensors':  # whose metadata are strings
        meta |= dataset_meta(checkpoint)
    write_checkpoint(target, weights, meta)
    print(f'written: {target}')
    if converted.note:
        print(f'note: {converted.note}')


def describe(checkpoint: object) -> str:
    names = list(checkpoint) if isinstance(checkpoint, Mapping) else []
    if len(names) <= 10:
        return f'holds {", ".join(map(str, names))}'
    return f'{len(names)} entries'


def dataset_meta(checkpoint: object) -> dict[str, dict]:
    """Classes and colors, with which inferencers draw results."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    found = {key: meta.get(key.upper()) for key in ('classes', 'palette')}
    plain = all(isinstance(value, (list, tuple)) for value in found.values())
    return {'dataset_meta': found} if plain else {}


def class_ids(text: str) -> list[int] | str:
    return text if text == 'all' else [int(x) for x in text.split(',')]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'source',
        metavar='IN',
        help='official checkpoint, .pth or .safetensors; none of its code is run',
    )
    parser.add_argument(
        'target', metavar='OUT', help='file to write, .pth for mmengine or .safetensors'
    )
    parser.add_argument(
        '--family',
        choices=sorted({**FAMILIES, **DETECTORS}),
        help='default: recognized from the keys',
    )
    parser.add_argument(
        '--arch', help='name of the arch, for example small; default: the one that fits'
    )
    parser.add_argument(
        '--backbone-only',
        action='store_true',
        help='drop the head of a classifier, or all but the backbone of a detector or '
        'segmentor',
    )
    parser.add_argument(
        '--class-ids',
        type=class_ids,
        metavar='all|ID,ID',
        help="rows of a DETR's categories to keep, in the order of the classes, for "
        "example 1,2,3; default: COCO's classes if the ids are COCO's, else all",
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite OUT if it exists'
    )
    return parser.parse_args()


if __name__ == '__main__':
    run(main, OSError, ValueError)
