"""Count the parameters, MACs and FLOPs of a model and its parts for one image.

Counted are convolutions, linear layers, both matrix products of attention, and 4 MACs
per bilinearly sampled value; not normalization, activations and softmax. One MAC is two
FLOPs; many papers report MACs as FLOPs. Whole models are counted: classifiers,
segmentors without auxiliary heads, and detectors with encoder, decoder and heads (RoI
heads with 1,000 boxes and 100 masks). A part that does not run is named in the total.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from _cli import run

import torch
from _progress import Progress
from benchmark.parts import time_parts
from benchmark.report import align
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement

from mmsparse.analysis.flops import (
    Part,
    format_count,
    measure,
    measure_classifier,
    published_classifiers,
)
from mmsparse.apis import build_model, read_config
from mmsparse.models.backbones.base import image_channels


def main() -> None:
    args = parse_args()
    if args.zoo:
        parts, seconds = measure_zoo(), {}
    else:
        if min(args.shape) < 1:
            raise ValueError(
                f'--shape must be two positive numbers; got {args.shape[0]} '
                f'{args.shape[1]}'
            )
        model = build_model(read_config(args.config))
        parts, seconds = measure(model, tuple(args.shape), args.blocks), {}
        if args.time:
            seconds = measure_time(model, args)
        print(f'{args.config}, one image of {args.shape[0]}x{args.shape[1]} pixels')
    print(format_table(parts, seconds))
    if without := ', '.join(parts[-1].without):
        reason = parts[-1].failure or 'used in training only'
        print(f'not run: {without} ({reason})')
    if args.json:
        write_json(Path(args.json), parts, seconds)
        print(args.json)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument('config', nargs='?', help='config file')
    model.add_argument(
        '--zoo',
        action='store_true',
        help='every published classifier, at the image size of its weights',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='height and width of the image (default: 224 224)',
    )
    parser.add_argument(
        '--blocks', action='store_true', help='list the blocks of every stage, too'
    )
    parser.add_argument(
        '--time',
        action='store_true',
        help='measure the time of a forward pass with random weights, too',
    )
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='timed forward passes, of which the median counts (default: 5)',
    )
    parser.add_argument('--device', default='cpu', help='for --time (default: cpu)')
    parser.add_argument('--json', metavar='FILE', help='write exact counts to a file')
    return parser.parse_args()


def measure_zoo() -> list[Part]:
    published, parts = published_classifiers(), []
    with Progress('zoo', len(published), 'models') as progress:
        for model in published:
            parts.append(measure_classifier(*model))
            progress.update()
    return parts


def measure_time(model: BaseModel, args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of every part for one image of random pixels."""
    model = model.to(args.device).eval()
    shape = tuple(args.shape)
    x = torch.rand(1, image_channels(model), *shape, device=args.device)
    metainfo = dict(batch_input_shape=shape, img_shape=shape)
    sample = BaseDataElement(metainfo=metainfo)

    def forward() -> None:
        with torch.no_grad():
            model(x, [sample], mode='tensor')

    device = torch.device(args.device)
    return time_parts(model, forward, args.repeats, device, args.blocks)


def format_table(parts: list[Part], seconds: dict[str, float]) -> str:
    rows = [['', 'params', 'MACs', 'FLOPs', *(['ms'] if seconds else [])]]
    for part in parts:
        name = '  ' * part.name.count('.') + part.name.rpartition('.')[2]
        counts = [part.parameters, part.macs, part.flops]
        row = ['not run' if x is None else format_count(x) for x in counts]
        if part.without:
            name = f'total without {", ".join(part.without)}'
        if seconds:
            time = seconds.get(part.name)
            row.append('' if time is None else f'{1000 * time:.2f}')
        rows.append([name, *row])
    return align(rows)


def write_json(path: Path, parts: list[Part], seconds: dict[str, float]) -> None:
    entries: list[dict[str, Any]] = []
    for part in parts:
        entry = dict(name=part.name, params=part.parameters)
        entry.update(macs=part.macs, flops=part.flops)
        if part.without:
            entry.update(without=part.without)
        if part.name in seconds:
            entry.update(seconds=seconds[part.name])
        entries.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, indent=1) + '\n')


if __name__ == '__main__':
    run(main, OSError, ValueError)
