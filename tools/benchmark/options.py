"""Command-line options of the benchmark."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmark.gpu import SECTIONS

OUT = Path('work_dirs', 'gpu')


def parse_args(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description,
        epilog='The candidates of a table run in turns, so that a drifting machine '
        'does not favor one. Still, stop other work on the machine. Without mmengine, '
        'there are ops and gpu alone.',
    )
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    common = common_arguments()
    add_operators(commands, common)
    if find_spec('mmengine') is not None:
        from benchmark.model_options import add_model_commands

        add_model_commands(commands, common)
    add_gpu(commands)
    return parser.parse_args()


def common_arguments() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        '--repeats', type=int, default=5, help='number of timed rounds (%(default)s)'
    )
    common.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='cpu, cuda:0, ... (a GPU if there is one)',
    )
    common.add_argument('--threads', type=int, help='CPU threads of torch')
    common.add_argument(
        '--cpu-time',
        action='store_true',
        help='measure the CPU time of the process, on a machine that does other work; '
        'with --threads 1',
    )
    common.add_argument('--json', metavar='FILE', help='write all figures as JSON')
    common.add_argument(
        '--plot', metavar='FILE', help='plot the medians; .png, .svg or .pdf'
    )
    return common


def add_operators(
    commands: argparse._SubParsersAction, common: argparse.ArgumentParser
) -> None:
    parser = commands.add_parser(
        'ops',
        parents=[common],
        help='attention patterns over image sizes',
        description='Compare reference and fast path of every attention pattern, and '
        'dense attention, on the feature map of a second stage (an eighth of the '
        'image, 128 channels, 4 heads), over image sizes.',
    )
    parser.add_argument(
        '--pixels',
        nargs='+',
        type=int,
        default=[224, 448, 800, 1344, 2048],
        metavar='SIDE',
        help='sides of images, multiples of 32 (224 448 800 1344 2048)',
    )
    parser.add_argument(
        '--limit',
        type=float,
        default=4.0,
        metavar='GIB',
        help='skip references that need more memory, by estimate (%(default)s)',
    )
    parser.add_argument('--no-training', action='store_true', help='forward pass only')
    parser.add_argument(
        '--tune',
        action='store_true',
        help="measure every backend at the models' shapes instead, and write the file "
        "by which backend='auto' chooses on this device",
    )


def add_gpu(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        'gpu',
        help='a job of eight minutes on one GPU',
        description='Check and time everything on one GPU within some minutes: '
        f'{", ".join(SECTIONS)}. Every measurement is written at once, as JSON. A '
        'failure ends its measurement only; with wrong results the exit status is 1.',
    )
    parser.add_argument(
        '--budget',
        type=float,
        default=440,
        metavar='SECONDS',
        help='time for all sections (%(default)s)',
    )
    parser.add_argument(
        '--only', nargs='+', choices=SECTIONS, metavar='SECTION', help='run only these'
    )
    parser.add_argument(
        '--smoke', action='store_true', help='try it: tiny sizes, on any device'
    )
    parser.add_argument(
        '--resume', action='store_true', help='keep what --json has, measure the rest'
    )
    parser.add_argument(
        '--out', type=Path, default=OUT, help='folder of the results (%(default)s)'
    )
    for name, content in (
        ('json', 'all results'),
        ('csv', "models in the columns of timm's benchmarks"),
        ('page', 'tables and the fastest backends, as Markdown'),
    ):
        suffix = 'md' if name == 'page' else name
        parser.add_argument(
            f'--{name}',
            type=Path,
            metavar='FILE',
            help=f'{content} (gpu.{suffix} in --out)',
        )
