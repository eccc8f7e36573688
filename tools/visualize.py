"""Draw what the attention of a trained model does on images.

Writes NAME_FIGURE.png for every image, as far as the model has the parts: attention,
sampled_keys (DAT), routed_regions (BiFormer), foreground and kept_tokens (Sparse DETR,
Focus-DETR), sampling_locations (deformable decoders), queries and encoder_points
(DETR), and receptive_field. The backbone may also be a Swin, ViT or PVT of another
library.

With --compare, several models are drawn next to each other on one image:
  --compare CONFIG CHECKPOINT CONFIG CHECKPOINT ... IMAGE
CONFIG may be timm:NAME, and CHECKPOINT may be left out for random weights.

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
from matplotlib.figure import Figure
from mmengine.model import BaseModel
from visualize.models import parse_models, record

from mmsparse.apis import load_model, read_config
from mmsparse.apis.config import add_cfg_options
from mmsparse.datasets.errors import SampleError, blame_files, check_image
from mmsparse.visualization import (
    Sample,
    attention_distance,
    choose_query_point,
    draw_all,
    list_comparisons,
    read_classes,
    read_pipeline,
    record_sample,
    sample_statistics,
    write_page,
)

DPI = 130
FORMATS = ('png', 'svg', 'pdf')


def main() -> int:
    args = parse_args()
    if args.compare:
        return compare(args)
    check_files(*args.images, args.checkpoint)
    check_unique_names(args.images)
    cfg = read_config(args.config, args.cfg_options)
    model = load_model(cfg, args.checkpoint, args.device)
    transforms = read_pipeline(cfg)
    names, _ = read_classes(cfg, args.checkpoint)
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
        '--compare',
        action='store_true',
        help='draw several models next to each other',
    )
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
        help='query and detection, in pixels of the image (default: the best '
        'detection, or the most salient point)',
    )
    parser.add_argument(
        '--format',
        choices=FORMATS,
        default='png',
        help='format of the figures (default: png)',
    )
    parser.add_argument('--html', action='store_true', help='write an HTML page, too')
    parser.add_argument(
        '--stats',
        action='store_true',
        help='write attention statistics, too, averaged over images',
    )
    parser.add_argument('--device', default='cpu', help='cuda:0, ... (default: cpu)')
    add_cfg_options(parser, 'test_dataloader.dataset.pipeline.1.scale=(512,512)')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='SCORE',
        help='minimum score of a detection (default: 0.3)',
    )
    args = parser.parse_args()
    if args.compare and (args.html or args.stats):
        parser.error('--html and --stats are for one model, not for --compare')
    return args


def compare(args: argparse.Namespace) -> int:
    """Draw several models next to each other."""
    choices, path = parse_models([args.config, args.checkpoint, *args.images])
    check_files(path, *(x.checkpoint for x in choices if x.checkpoint is not None))
    check_image(path)
    samples, point = {}, tuple(args.point) if args.point else None
    for choice in choices:
        model, sample = record(choice, path, args)
        samples[choice.title] = sample
        point = point or choose_query_point(sample, getattr(model, 'backbone', model))
    with blame_files(path):
        for sample in samples.values():
            sample.transform.check_point(point)
    use_fonts_for({x for sample in samples.values() for x in sample.class_names})
    for name, plot in list_comparisons(samples).items():
        print(
            save(plot(point), Path(args.out, Path(path).stem), f'compare_{name}', args)
        )
    return 0


def save(figure: Figure, prefix: Path, name: str, args: argparse.Namespace) -> Path:
    """Write a figure to a file, and return its path."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    target = Path(f'{prefix}_{name}.{args.format}')
    figure.savefig(target, dpi=DPI)
    return target


def draw(
    sample: Sample, model: BaseModel, prefix: Path, args: argparse.Namespace
) -> Iterator[Path]:
    point = tuple(args.point or choose_query_point(sample, model.backbone))
    for name, figure in draw_all(sample, point, model.backbone):
        yield save(figure, prefix, name, args)
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
