"""Export a trained model to ONNX, and compare the file with PyTorch.

Classifiers of mmpretrain, encoder-decoders of mmseg, and Deformable DETR, DINO,
Sparse DETR and Focus-DETR. The input is ``image``, RGB from 0 to 255, resized and not
padded; outputs are ``logits``, or ``boxes``, ``scores`` and ``labels``: docs/export.md.

The runtimes run the file on random images. Differences above 1e-4 are an error; they
are relative where values are above 1, and for boxes to the image size.
"""

import argparse
from pathlib import Path

from _cli import run

from mmsparse.apis import add_cfg_options, load_model, read_config
from mmsparse.deploy.export import (
    AXES,
    OPSET,
    OPSETS,
    TOLERANCE,
    build_graph,
    compare_onnx,
    export_onnx,
)
from mmsparse.deploy.runtimes import EXTRA, RUNTIMES, installed_runtimes
from mmsparse.errors import UsageError
from mmsparse.ops.sampling import SAMPLERS


def main() -> None:
    args = parse_args()
    if min(args.shape) < 1:
        raise UsageError(
            f'--shape must be two positive numbers; got {args.shape[0]} {args.shape[1]}'
        )
    name = Path(args.config).with_suffix('.onnx').name
    out = Path(args.out or Path('work_dirs', 'export', name))
    if out.is_dir():
        raise UsageError(f'--out must be a file; {out} is a folder')
    cfg = read_config(args.config, args.cfg_options)
    graph = build_graph(load_model(cfg, args.checkpoint), tuple(args.shape))
    out.parent.mkdir(parents=True, exist_ok=True)
    export_onnx(graph, out, args.opset, args.sampler, args.dynamic, args.simplify)
    print(out)
    runtimes = installed_runtimes() if args.check is None else args.check
    if not runtimes:
        print(f'not compared with PyTorch; to check it: {EXTRA}')
    largest = 0.0
    for runtime in runtimes:
        for name, difference in compare_onnx(graph, out, runtime).items():
            print(f'{runtime}: {name} differ from PyTorch by at most {difference:.1e}')
            largest = max(largest, difference)
    if largest > TOLERANCE:
        raise UsageError(f'{out} differs from PyTorch by more than {TOLERANCE:g}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, .pth or .safetensors')
    parser.add_argument(
        '--out',
        metavar='FILE',
        help='ONNX file (default: work_dirs/export/CONFIG.onnx)',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='height and width of the images (default: 224 224)',
    )
    parser.add_argument(
        '--dynamic',
        nargs='*',
        choices=AXES,
        default=['batch'],
        metavar='AXIS',
        help='axes of any length (default: batch): batch, and for classifiers with '
        'DAT or Shunted Transformer height and width, from --shape up; none if empty',
    )
    parser.add_argument(
        '--sampler',
        choices=SAMPLERS,
        default=SAMPLERS[0],
        help='how feature maps are sampled (default: grid_sample): GridSample of ONNX; '
        'gather, the same by gathers; or plugin, with nodes for the TensorRT plugin '
        'of multi-scale deformable attention, and gathers elsewhere',
    )
    parser.add_argument(
        '--opset',
        type=int,
        default=OPSET,
        help=f"version of ONNX's operators (default: {OPSET}); {OPSETS}",
    )
    parser.add_argument(
        '--simplify', action='store_true', help='simplify the graph with onnxslim'
    )
    parser.add_argument(
        '--check',
        nargs='*',
        choices=RUNTIMES,
        metavar='RUNTIME',
        help=f'runtimes that check the file, of {", ".join(RUNTIMES)} (default: those '
        'that are installed); none if empty',
    )
    add_cfg_options(parser, 'model.test_cfg.max_per_img=100')
    return parser.parse_args()


if __name__ == '__main__':
    run(main, OSError, ValueError)
