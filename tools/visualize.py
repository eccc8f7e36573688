"""Draw what the attention of a trained model does on images.

Works with classifiers, detectors and segmentors. Written for every image, as far as the
model has the parts for it:

  NAME_attention.png           attention map of a query, in the last layer of each stage
  NAME_sampled_keys.png        DAT: sampled keys, their offsets, the attention to them
  NAME_routed_regions.png      BiFormer: routed regions, and the attention in them
  NAME_foreground.png          Focus-DETR: foreground probability of tokens, by level
  NAME_kept_tokens.png         Focus-DETR: tokens that each encoder layer keeps
  NAME_sampling_locations.png  Focus-DETR, DINO, Deformable DETR: sampling locations of
                               a detection in each decoder layer
  NAME_receptive_field.png     effective receptive field of the backbone at the point
  NAME.html                    with --html: all layers; a click moves the query
  statistics.json              with --stats: mean attention distance of every head;
                               DAT: offset spread; BiFormer: routing entropy

Images that cannot be read are reported and skipped; the exit status is then 1.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from _cli import check_files, check_unique_names, run

import torch
from _fonts import use_fonts_for
from benchmark.report import align
from mmengine.model import BaseModel

from mmsparse.apis import load_model, read_config
from mmsparse.datasets.errors import SampleError, blame_files, check_image
from mmsparse.visualization import (
    Sample,
    attention_distance,
    choose_query_point,
    draw_all,
    read_pipeline,
    record_sample,
    sample_statistics,
    write_page,
)

DPI = 130


def main() -> int:
    args = parse_args()
    check_files(*args.images, args.checkpoint)
    check_unique_names(args.images)
    cfg = read_config(args.config)
    model = load_model(cfg, args.checkpoint, args.device)
    transforms, names = read_pipeline(cfg)
    use_fonts_for(names)
    out, failed, statistics = Path(args.out), False, []
    for path in args.images:
        try:
            check_image(path)
            with blame_files(path):
                sample = record_sample(model, transforms, path, names, args.score_thr)
                for target in draw(sample, model, out / Path(path).stem, args):
                    print(target, flush=True)
                if args.stats:
                    statistics.append(measure(sample))
        except SampleError as error:
            print(f'error: {error}', file=sys.stderr)
            failed = True
    if statistics:
        print(report(statistics, out / 'statistics.json'))
    return int(failed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='image files')
    parser.add_argument(
        '--out',
        default='work_dirs/visualize',
        metavar='DIR',
        help='output folder (default: work_dirs/visualize)',
    )
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='query, and selected detection, in pixels of the image (default: center '
        'of the best detection, else the most salient point)',
    )
    parser.add_argument('--html', action='store_true', help='write an HTML page, too')
    parser.add_argument(
        '--stats',
        action='store_true',
        help='print and write attention statistics, averaged over the images, too',
    )
    parser.add_argument('--device', default='cpu', help='cuda:0, ... (default: cpu)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='SCORE',
        help='minimum score of a detection (default: 0.3)',
    )
    return parser.parse_args()


def draw(
    sample: Sample, model: BaseModel, prefix: Path, args: argparse.Namespace
) -> Iterator[Path]:
    point = tuple(args.point or choose_query_point(sample, model.backbone))
    for name, figure in draw_all(sample, point, model.backbone):
        prefix.parent.mkdir(parents=True, exist_ok=True)
        target = Path(f'{prefix}_{name}.png')
        figure.savefig(target, dpi=DPI)
        yield target
    if args.html:
        target = Path(f'{prefix}.html')
        write_page(sample, point, target)
        yield target


def measure(sample: Sample) -> dict[str, Any]:
    """Return attention distances by layer and head, in input pixels, and scalars."""
    distances = {
        recorded.title: attention_distance(recorded.layer, recorded.x) * recorded.stride
        for recorded in sample.recording.layers
    }
    return dict(distances=distances, scalars=sample_statistics(sample))


def report(statistics: list[dict[str, Any]], path: Path) -> str:
    """Write the means over the images to a JSON file, and format them as tables."""
    layers, scalars = defaultdict(list), defaultdict(list)
    for entry in statistics:
        for title, distances in entry['distances'].items():
            layers[title].append(distances)
        for name, value in entry['scalars'].items():
            scalars[name].append(value)
    means = {name: fmean(values) for name, values in scalars.items()}
    distances = {title: torch.stack(x).mean(0).tolist() for title, x in layers.items()}
    heads = max(map(len, distances.values()), default=0)
    rows = [['mean attention distance in pixels', 'mean']]
    rows[0] += [f'head {i + 1}' for i in range(heads)]
    for title, values in distances.items():
        cells = [f'{x:.1f}' for x in (fmean(values), *values)]
        rows.append([title, *cells, *[''] * (heads - len(values))])
    tables = [align(rows)] if distances else []
    if means:
        tables.append(align([[name, f'{value:.3f}'] for name, value in means.items()]))
    content = dict(num_images=len(statistics), attention_distance=distances, **means)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + '\n')
    return '\n'.join([*tables, str(path)])


if __name__ == '__main__':
    run(main, OSError)
