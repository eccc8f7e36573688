"""Draw what a sparse model looks at, on pictures.

Works for classifiers, detectors and segmentors. Written are, as far as the model has
the parts for it:

  NAME_attention.png   what the query at a point attends to, in the last layer of each
                       stage
  NAME_keys.png        DAT: sampled keys, their offsets, the attention they receive
  NAME_regions.png     BiFormer: routed regions, and the attention inside them
  NAME_foreground.png  Focus-DETR: foreground score of the tokens of each level
  NAME_kept.png        Focus-DETR: tokens that each layer keeps; dots on object tokens
  NAME_sampling.png    Focus-DETR, DINO, Deformable DETR: points that a detection reads
  NAME_field.png       effective receptive field of the backbone at the point
  NAME.html            with --html: all layers by a slider, the query by a click; one
                       file that needs no network

A picture that cannot be drawn is told, the others are drawn, and the command ends with
an error.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from _cli import check_files, check_unique_names

from mmengine.model import BaseModel

from mmsparse.apis import load_model, read_config
from mmsparse.datasets.errors import SampleError, blame_files, check_image
from mmsparse.errors import UsageError
from mmsparse.visualization import (
    choose_point,
    draw_all,
    read_pipeline,
    view,
    write_page,
)

DPI = 130


def main() -> None:
    args = parse_args()
    try:
        check_files(*args.images, args.checkpoint)
        check_unique_names(args.images)
        cfg = read_config(args.config)
        model = load_model(cfg, args.checkpoint, args.device)
        transforms, classes = read_pipeline(cfg)
    except UsageError as error:
        sys.exit(f'error: {error}')
    failed = False
    for path in args.images:
        try:
            check_image(path)
            with blame_files(path):
                for target in draw(args, path, model, transforms, classes):
                    print(target, flush=True)
        except SampleError as error:
            print(f'error: {error}', file=sys.stderr)
            failed = True
    sys.exit(failed)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='configuration file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture files')
    parser.add_argument(
        '--out',
        default='work_dirs/visualize',
        metavar='DIR',
        help='folder for the drawings, work_dirs/visualize by default',
    )
    parser.add_argument(
        '--point',
        type=float,
        nargs=2,
        metavar=('X', 'Y'),
        help='the query, and the detection, in pixels of the picture; by default the '
        'middle of the best detection, or the spot that the backbone heeds most',
    )
    parser.add_argument(
        '--html', action='store_true', help='write a page for the browser, too'
    )
    parser.add_argument('--device', default='cpu', help='cpu by default, cuda:0, ...')
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        help='least score of a drawn box, 0.3 by default',
    )
    return parser.parse_args()


def draw(
    args: argparse.Namespace,
    path: str,
    model: BaseModel,
    transforms: Sequence[Any],
    classes: Sequence[str],
) -> Iterator[Path]:
    out = Path(args.out)
    scene = view(model, transforms, path, classes, args.score_thr)
    point = args.point or choose_point(scene, model.backbone)
    for name, figure in draw_all(scene, tuple(point), model.backbone):
        out.mkdir(parents=True, exist_ok=True)
        target = out / f'{Path(path).stem}_{name}.png'
        figure.savefig(target, dpi=DPI)
        yield target
    if args.html:
        target = out / f'{Path(path).stem}.html'
        write_page(scene, tuple(point), target)
        yield target


if __name__ == '__main__':
    main()
