"""Train the variants of a model, and compare their accuracy and cost.

A study is a file of configs/ablations, or your own file like those: a config, and the
settings that differ in each variant. Finished variants are not trained again, and an
interrupted one resumes from its last checkpoint. Processes with the same arguments
share the variants. Writes table.md, results.json and plot.png of the finished variants
after every training, once the first variant is finished.
"""

import argparse
from itertools import product
from pathlib import Path

from _cli import run

from ablation.run import Run
from ablation.study import STUDIES, read_study
from training.folder import check_folder
from training.length import UNITS, Length
from training.runner import in_new_process

from mmsparse.apis import add_cfg_options
from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    study = read_study(args.study).change_all(args.cfg_options)
    out = Path(args.out or Path('work_dirs', 'ablations', study.name))
    check_folder(out)
    length = chosen_length(args) or study.length
    if length.number < 1:
        raise UsageError(f'--{length.unit} must be at least 1; got {length.number}')
    training = Run(study, length, args.seeds, args.pretrained, out)
    costs = in_new_process(training.prepare)
    written = []
    for variant, seed in product(study.variants, args.seeds):
        training.train(variant, seed)
        written = training.write(costs)
    if written:
        print(written[0].read_text())
        print('\n'.join(map(str, written)))
    finished = training.finished
    if left := [x.name for x in study.variants if x not in finished]:
        print(f'trained by another process: {", ".join(left)}')


def chosen_length(args: argparse.Namespace) -> Length | None:
    for unit in UNITS:
        if (number := getattr(args, unit)) is not None:
            return Length(number, unit)
    return None


def parse_args() -> argparse.Namespace:
    names = ', '.join(sorted(path.stem for path in STUDIES.glob('*.yml')))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', metavar='STUDY', help=f'one of {names}; or a file')
    parser.add_argument(
        '--out', metavar='DIR', help='output folder (work_dirs/ablations/STUDY)'
    )
    group = parser.add_mutually_exclusive_group()
    for unit in UNITS:
        group.add_argument(
            f'--{unit}',
            type=int,
            metavar='N',
            help=f"{unit} of each training (the study's length)",
        )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0],
        metavar='SEED',
        help='random seeds; each variant is trained once with each of them (0)',
    )
    parser.add_argument(
        '--pretrained',
        metavar='CHECKPOINT',
        help='model whose backbone initializes all backbones; it must have all '
        'parameters of the first variant, other variants may differ',
    )
    add_cfg_options(parser, 'load_from=work_dirs/detector/epoch_5.pth')
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
