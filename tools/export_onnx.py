"""Export a trained model to ONNX, and compare the file with PyTorch.

Classifiers of mmpretrain, encoder-decoders of mmsegmentation, and Deformable DETR, DINO
and Focus-DETR of mmdet. The batch is free, the size of the pictures is that of --shape.

  image   in: RGB from 0 to 255, float32, (batch, 3, H, W), resized and not padded; mean
          and standard deviation of the configuration are in the graph
  logits  out: of a classifier (batch, classes), of a segmentor (batch, classes, H, W)
  boxes   out, of a detector: (x1, y1, x2, y2) in pixels of the input, (batch, K, 4),
  scores  (batch, K), best first, and
  labels  (batch, K), counted from 0
"""

import argparse
import importlib.util
import sys
from pathlib import Path

from mmsparse.apis import add_cfg_options, load_model, read_config
from mmsparse.deploy.export import (
    EXTRA,
    OPSETS,
    TOLERANCE,
    build_graph,
    compare_onnx,
    export_onnx,
)
from mmsparse.errors import UsageError

BATCH_SIZES = (1, 3)  # to compare; neither is the one that is traced


def main() -> None:
    args = parse_args()
    try:
        if min(args.shape) < 1:
            raise UsageError(
                f'--shape must be two positive numbers; got {args.shape[0]} '
                f'{args.shape[1]}'
            )
        differences = export(args)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    if max(differences.values(), default=0) > TOLERANCE:
        sys.exit(f'error: the file differs from PyTorch by more than {TOLERANCE:g}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='onnxruntime runs the file on noise, one picture and three at a time; '
        f'differences\nabove {TOLERANCE:g} are an error. They are parts of the largest '
        'number where that is\nabove 1, and those of boxes are parts of the picture.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='configuration file')
    parser.add_argument('checkpoint', help='checkpoint file, .pth or .safetensors')
    parser.add_argument(
        '--out', metavar='FILE', help='work_dirs/export/CONFIG.onnx if not given'
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='height and width of the pictures, 224 224 by default',
    )
    parser.add_argument(
        '--opset',
        type=int,
        help="version of ONNX's operators; what torch recommends if not given; "
        f'{OPSETS}',
    )
    add_cfg_options(parser, 'model.test_cfg.max_per_img=100')
    return parser.parse_args()


def export(args: argparse.Namespace) -> dict[str, float]:
    name = Path(args.config).with_suffix('.onnx').name
    out = Path(args.out or Path('work_dirs', 'export', name))
    if out.is_dir():
        raise UsageError(f'--out must be a file; {out} is a folder')
    cfg = read_config(args.config, args.cfg_options)
    graph = build_graph(load_model(cfg, args.checkpoint), tuple(args.shape))
    out.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, out, args.opset)
    print(out)
    if importlib.util.find_spec('onnxruntime') is None:
        print(f'not compared with PyTorch: onnxruntime is not installed; {EXTRA}')
        return {}
    differences = compare_onnx(graph, out, BATCH_SIZES)
    for name, difference in differences.items():
        print(f'{name}: differs from PyTorch by {difference:.1e} at most')
    return differences


if __name__ == '__main__':
    main()
