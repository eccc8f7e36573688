"""Tell what the parts of a model cost, and how far its heads look.

Two tables: parameters, multiply-adds and time of every stage and block; and for every
attention layer the mean distance from query to key, weighed by attention, head by head,
in pixels of what the model is given. Both are of the pictures that are named.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from _cli import check_files

import torch
from benchmark.parts import time_parts
from benchmark.report import align

from mmsparse.analysis.flops import measure
from mmsparse.apis import load_model, read_config
from mmsparse.datasets.errors import blame_files, check_image
from mmsparse.errors import UsageError
from mmsparse.visualization import read_pipeline, record
from mmsparse.visualization.image_transform import run_pipeline
from mmsparse.visualization.measures import attention_distance


def main() -> None:
    args = parse_args()
    try:
        found = analyze(args)
    except (UsageError, ValueError) as error:
        sys.exit(f'error: {error}')
    height, width = found['shape']
    print(f'{args.config}, one picture of {height}x{width} pixels, as the model has it')
    print(cost_table(found['chunked']))
    if found['distances']:
        print(f'\nmean distance of attention in pixels, {len(args.images)} pictures')
        print(distance_table(found['distances']))
    if args.json:
        target = Path(args.json)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(found, indent=1) + '\n')
        print(target)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='configuration file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture files')
    parser.add_argument('--json', metavar='FILE', help='write the numbers there, too')
    parser.add_argument('--device', default='cpu', help='cpu by default, cuda:0, ...')
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='timed runs on the first picture, 5 by default; the median counts',
    )
    return parser.parse_args()


def analyze(args: argparse.Namespace) -> dict[str, Any]:
    check_files(*args.images, args.checkpoint)
    cfg = read_config(args.config)
    model = load_model(cfg, args.checkpoint, args.device)
    transforms, _ = read_pipeline(cfg)
    batches = []
    for path in args.images:
        check_image(path)
        with blame_files(path):
            data, _, _ = run_pipeline(transforms, path)
        batches.append(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        )
    shape, distances = look_at(model, batches)
    with torch.no_grad():
        seconds = time_parts(
            model,
            lambda: model.test_step(batches[0]),
            args.repeats,
            torch.device(args.device),
        )
    parts = [
        dict(
            name=part.name,
            parameters=part.parameters,
            macs=part.macs,
            seconds=seconds.get(part.name),
        )
        for part in measure(model, shape, blocks=True)
    ]
    return dict(shape=shape, parts=parts, distances=distances)


def look_at(
    model: torch.nn.Module, batches: list[dict]
) -> tuple[tuple[int, int], dict[str, list[float]]]:
    """The size of the first input, and distances in pixels by layer and head."""
    shape, found = None, {}
    with record(model) as seen, torch.no_grad():
        for batch in batches:
            model.test_step(batch)
            shape = shape or tuple(seen.inputs.shape[-2:])
            for layer in seen.layers:
                distance = attention_distance(layer.layer, layer.x) * layer.stride
                found.setdefault(layer.title, []).append(distance)
    means = {title: torch.stack(x).mean(0).tolist() for title, x in found.items()}
    return shape, means


def cost_table(parts: list[dict[str, Any]]) -> str:
    rows = [['', 'parameters', 'multiply-adds', 'ms']]
    for part in parts:
        name = part['name'].rpartition('.')[2]
        indent = '  ' * part['name'].count('.')
        macs, seconds = part['macs'], part['seconds']
        rows.append(
            [
                indent + name,
                f'{part["parameters"]:,}',
                'not run' if macs is None else f'{macs:,}',
                '' if seconds is None else f'{1000 * seconds:.2f}',
            ]
        )
    return align(rows)


def distance_table(distances: dict[str, list[float]]) -> str:
    heads = max(map(len, distances.values()))
    rows = [['', 'mean', *(f'head {i + 1}' for i in range(heads))]]
    for title, values in distances.items():
        numbers = [sum(values) / len(values), *values]
        cells = [f'{x:.1f}' for x in numbers]
        rows.append([title, *cells, *[''] * (heads - len(values))])
    return align(rows)


if __name__ == '__main__':
    main()
