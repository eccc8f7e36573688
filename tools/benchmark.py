"""Compare the time and memory of models on the device at hand."""

import argparse
import json
import os
import sys
import warnings
from pathlib import Path

import torch
from benchmark import Measurement, measure
from benchmark.backbone import (
    FORWARD,
    TRAINING,
    backbone_candidates,
    product_rate,
)
from benchmark.detector import detector_candidates, set_width
from benchmark.operators import operator_candidates, plot_scaling
from benchmark.report import PLOT_FORMATS, as_json, environment, plot, table
from benchmark.segmentor import prediction_candidate, training_candidates

from mmsparse.apis import add_cfg_options, read_config
from mmsparse.errors import UsageError

ROOT = Path(__file__).parents[1]
FOCUS_DETR = ROOT / 'configs' / 'focus_detr' / 'focus-detr_r50_8xb2-12e_coco.py'
SIZES = ((800, 1333), (640, 640))


def main() -> None:
    args = parse_args()
    # Torch's profiler, which follows the memory, tells all that it does.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    warnings.filterwarnings('ignore', module='torch')
    try:
        prepare_files(args)
        if args.threads is not None:
            set_threads(args.threads)
        if getattr(args, 'batch_size', 1) < 1:
            raise ValueError(f'--batch-size must be at least 1; got {args.batch_size}')
        args.device = torch.device(args.device)
        results = COMMANDS[args.command](args)
    except (UsageError, ValueError, OSError) as error:
        sys.exit(f'error: {error}')
    write(results, args)


def detector(args: argparse.Namespace) -> dict[str, list[Measurement]]:
    cfg = read_config(str(args.config), args.cfg_options)
    if args.width is not None:
        set_width(cfg, args.width)
    results = {}
    for height, width in args.sizes:
        name = f'{args.batch_size}x{height}x{width}'
        tell(f'{name}: building')
        candidates = detector_candidates(
            cfg, args.keep, (height, width), args.batch_size, args.device
        )
        results[name] = compare(name, candidates, args)
    return results


def segmentor(args: argparse.Namespace) -> dict[str, list[Measurement]]:
    results = {}
    for path in args.configs:
        tell(f'{path}: building')
        cfg = read_config(path, args.cfg_options)
        height, width = args.crop
        name = f'{Path(path).stem}, training on {args.batch_size}x{height}x{width}'
        candidates = training_candidates(cfg, args.crop, args.batch_size, args.device)
        results[name] = compare(name, candidates, args)
        height, width = args.picture
        name = f'{Path(path).stem}, prediction of 1x{height}x{width}'
        candidate = prediction_candidate(cfg, args.picture, args.device)
        results[name] = compare(name, [candidate], args)
    return results


def backbone(args: argparse.Namespace) -> dict[str, list[Measurement]]:
    results = {}
    for path in args.configs:
        tell(f'{path}: building')
        cfg = read_config(path, args.cfg_options)
        height, width = args.size
        name = f'{Path(path).stem}, {args.batch_size}x{height}x{width}'
        candidates, macs = backbone_candidates(
            cfg,
            args.size,
            args.batch_size,
            args.device,
            reference=not args.no_reference,
            training=not args.no_training,
            others=not args.no_timm,
        )
        results[name] = compare(name, candidates, args)
        print_shares(results[name], macs, product_rate(args.device))
    return results


def operators(args: argparse.Namespace) -> dict[int, list[Measurement]]:
    limit = args.limit * 2**30
    return {
        pixels: compare(
            f'{pixels}x{pixels}',
            operator_candidates(pixels, args.device, limit, not args.no_training),
            args,
        )
        for pixels in args.pixels
    }


def print_shares(
    measurements: list[Measurement], macs: dict[str, int], rate: float
) -> None:
    """Print which share of a large matrix product's speed is reached.

    A backward pass is counted as two forward passes.
    """
    print(f'a product of large matrices: {2 * rate / 1e9:,.0f} GFLOP/s; of that')
    for measured in measurements:
        shares = (
            f'{part} {work / measured.median_seconds(part) / rate:.0%}'
            for part, work in (
                (FORWARD, macs[measured.name]),
                (TRAINING, 3 * macs[measured.name]),
            )
            if part in measured.seconds
        )
        multiplied = f'{macs[measured.name] / 1e9:.1f} G multiply-adds'
        print(f'  {measured.name} ({multiplied}): {", ".join(shares)}')


COMMANDS = {
    'ops': operators,
    'backbone': backbone,
    'detector': detector,
    'segmentor': segmentor,
}


def compare(name: str, candidates: list, args: argparse.Namespace) -> list[Measurement]:
    """Measure the candidates of one row, and print their table."""
    measurements = measure(
        candidates, args.repeats, args.device, lambda line: tell(f'{name}: {line}')
    )
    print(f'\n{name}\n{table(measurements)}\n', flush=True)
    return measurements


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def prepare_files(args: argparse.Namespace) -> None:
    """Find out before, not after the measurements, that files cannot be written."""
    if args.plot and Path(args.plot).suffix not in PLOT_FORMATS:
        raise UsageError(f'--plot must end with one of {PLOT_FORMATS}; got {args.plot}')
    for path in filter(None, (args.json, args.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)


def set_threads(threads: int) -> None:
    if threads < 1:
        raise ValueError(f'--threads must be at least 1; got {threads}')
    torch.set_num_threads(threads)


def write(results: dict[str, list[Measurement]], args: argparse.Namespace) -> None:
    where = environment(args.device)
    versions = ', '.join(f'{k} {v}' for k, v in where['versions'].items())
    machine = f'{where["device"]}, {where["threads"]} threads'
    print(
        f'{machine}, {where["cores"]} cores, load {where["load"]}; '
        f'Python {where["python"]}, {versions}\n'
        f'Medians of {args.repeats} rounds, and of the quotients with the first line '
        'in each round. Memory is what a run allocates, without weights and pictures.'
    )
    if args.json:
        content = dict(
            command=' '.join(sys.argv),
            environment=where,
            results={name: as_json(rows) for name, rows in results.items()},
        )
        Path(args.json).write_text(json.dumps(content, indent=2) + '\n')
        print(args.json)
    if args.plot:
        draw = plot_scaling if args.command == 'ops' else plot
        draw(results, args.plot, machine)
        print(args.plot)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='All candidates of a table run in turns, so that a drifting machine '
        'does not decide; end other work on the machine all the same.',
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    common = common_arguments()
    of_models = model_arguments(common)
    add_operators(commands, common)
    add_backbone(commands, of_models)
    add_detector(commands, of_models)
    add_segmentor(commands, of_models)
    return parser.parse_args()


def common_arguments() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        '--repeats', type=int, default=5, help='rounds that are timed, 5 by default'
    )
    common.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda:0, ...; a GPU if there is one',
    )
    common.add_argument('--threads', type=int, help='of torch on the CPU')
    common.add_argument('--json', metavar='FILE', help='write all figures as JSON')
    common.add_argument(
        '--plot', metavar='FILE', help='draw the medians, as .png, .svg or .pdf'
    )
    return common


def model_arguments(common: argparse.ArgumentParser) -> argparse.ArgumentParser:
    of_models = argparse.ArgumentParser(add_help=False, parents=[common])
    of_models.add_argument('--batch-size', type=int, default=1, help='1 by default')
    add_cfg_options(of_models, 'model.backbone.depth=101')
    return of_models


def add_operators(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'ops',
        parents=[common],
        help='the attention patterns alone, over sizes of pictures',
        description='Compare the definition and the fast path of every attention '
        'pattern, and dense attention, on the map of a second stage (an eighth of the '
        'picture, 128 channels, 4 heads): how time and memory grow with the picture.',
    )
    parser.add_argument(
        '--pixels',
        nargs='+',
        type=int,
        default=[224, 448, 800, 1344, 2048],
        metavar='SIDE',
        help='sides of pictures, multiples of 32; 224 448 800 1344 2048 by default',
    )
    parser.add_argument(
        '--limit',
        type=float,
        default=4.0,
        metavar='GIB',
        help='memory that a definition may take, by estimate; 4 GiB by default; '
        'what takes more is left out',
    )
    parser.add_argument(
        '--no-training', action='store_true', help='measure the forward pass alone'
    )


def add_backbone(
    commands: argparse._SubParsersAction, of_models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'backbone',
        parents=[of_models],
        help='the fast paths of a backbone beside the definition',
        description='Compare the fast paths of backbones with the plain definition of '
        'their attention, and with the Swin Transformer and the ConvNeXt of timm that '
        'have about as many parameters, if timm is installed; all with random weights '
        'on pictures of noise: time of a forward pass without gradients, of a forward '
        'and a backward pass in training, and peak memory of the two.',
    )
    parser.add_argument('configs', nargs='+', help='configs with a backbone of ours')
    parser.add_argument(
        '--size',
        type=parse_size,
        default=(224, 224),
        metavar='HxW',
        help='height and width of the pictures, 224x224 by default',
    )
    parser.add_argument(
        '--no-reference',
        action='store_true',
        help='leave the definition out: it may need more memory than there is',
    )
    parser.add_argument(
        '--no-training', action='store_true', help='measure the forward pass alone'
    )
    parser.add_argument(
        '--no-timm',
        action='store_true',
        help="leave timm's Swin and ConvNeXt out, which run beside if it is installed",
    )


def add_detector(
    commands: argparse._SubParsersAction, of_models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'detector',
        parents=[of_models],
        help="Focus-DETR beside mmdet's DINO of the same parts",
        description="Compare Focus-DETR with mmdet's DINO of the same backbone, neck, "
        'depth and width, with random weights on pictures of noise: time of the '
        'encoder, with the selection of tokens, and of the whole model, and peak '
        'memory.',
    )
    parser.add_argument(
        'config',
        nargs='?',
        default=FOCUS_DETR,
        help='config of a Focus-DETR, which tells the backbone; R50 by default',
    )
    parser.add_argument(
        '--sizes',
        nargs='+',
        type=parse_size,
        default=SIZES,
        metavar='HxW',
        help='heights and widths of pictures, 800x1333 640x640 by default',
    )
    parser.add_argument(
        '--keep',
        nargs='+',
        type=float,
        default=[0.3],
        metavar='RATIO',
        help='mean parts of the tokens that the layers of the encoder keep, one '
        "Focus-DETR for each; 0.3 by default, the paper's",
    )
    parser.add_argument(
        '--width', type=int, help='of the transformers, a multiple of 32'
    )


def add_segmentor(
    commands: argparse._SubParsersAction, of_models: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'segmentor',
        parents=[of_models],
        help='training with and without recomputation, and prediction',
        description='Time and peak memory of segmentors with random weights on noise: '
        'training on crops, as it is and with the blocks of the backbone recomputed in '
        'the backward pass (with_cp), and the prediction of a whole picture.',
    )
    parser.add_argument('configs', nargs='+', help='configs of segmentors')
    parser.add_argument(
        '--crop',
        type=parse_size,
        default=(512, 512),
        metavar='HxW',
        help='height and width of the crops, 512x512 by default',
    )
    parser.add_argument(
        '--picture',
        type=parse_size,
        default=(512, 2048),
        metavar='HxW',
        help='height and width of the picture, 512x2048 by default',
    )


def parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(
            f'a size must be HEIGHTxWIDTH, for example 800x1333; got {text}'
        )
    return int(height), int(width)


if __name__ == '__main__':
    main()
