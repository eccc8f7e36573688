"""Train models of mmsparse and of other libraries on real images, and compare them.

DATA_SET is a file of configs/comparisons, or your own file like those, with a config
for each row. All models train for the same number of iterations, or for the same time:
a pilot measures the time of an iteration first. Finished rows are not trained again,
and an interrupted one resumes. Processes with the same --out share the rows. Writes
table.md, results.json and plot.png after every row.
"""

import argparse
from itertools import product
from pathlib import Path

from _cli import run

import torch
from comparison.comparison import COMPARISONS, choose_rows, read_comparison
from comparison.pilot import read_costs
from comparison.protocol import ITERATIONS, TIME, choose_protocol
from comparison.run import Run
from comparison.training import find_start
from training.folder import check_folder

from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    comparison = read_comparison(args.data_set)
    rows = choose_rows(comparison, args.rows)
    budgets = dict(iterations=args.iterations, minutes=args.minutes)
    protocol = choose_protocol(comparison, args.protocol, budgets)
    if args.threads < 1:
        raise UsageError(f'--threads must be at least 1; got {args.threads}')
    torch.set_num_threads(args.threads)
    out = Path(args.out or Path('work_dirs', 'comparisons', comparison.name))
    check_folder(out)
    if args.pretrained:
        for name, seed in product(rows, args.seeds):
            find_start(args.pretrained, name, seed)
    costs = read_costs(out, comparison.models, args.threads)
    training = Run(comparison, protocol, costs, out, args.threads, args.pretrained)
    written = []
    for seed in args.seeds:
        for name in rows:
            training.train(name, seed)
            written = training.write()
    if written:
        print(written[0].read_text())
    print('\n'.join(map(str, written)))


def parse_args() -> argparse.Namespace:
    names = ', '.join(sorted(path.stem for path in COMPARISONS.glob('*.yml')))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('data_set', metavar='DATA_SET', help=f'{names}; or a file')
    parser.add_argument(
        '--protocol',
        choices=(ITERATIONS, TIME),
        default=ITERATIONS,
        help='what all models have the same of (iterations)',
    )
    parser.add_argument(
        '--iterations', type=int, metavar='N', help="of each model (the data set's)"
    )
    parser.add_argument(
        '--minutes',
        type=float,
        metavar='M',
        help="of each model with --protocol time, without evaluations (the data set's)",
    )
    parser.add_argument(
        '--rows', nargs='+', metavar='ROW', help='models to train (all)'
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        metavar='SEED',
        help='random seeds; each model is trained once with each of them (0)',
    )
    parser.add_argument(
        '--pretrained',
        type=Path,
        metavar='START',
        help='start all backbones from that of a checkpoint, or from those of the same '
        'rows and seeds in the folder of another comparison, for example '
        'work_dirs/comparisons/cifar10/iterations-700',
    )
    parser.add_argument(
        '--threads', type=int, default=1, metavar='N', help='of a training (1)'
    )
    parser.add_argument(
        '--out', metavar='DIR', help='output folder (work_dirs/comparisons/DATA_SET)'
    )
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
