"""Train the variants of a model, and compare their accuracy and cost.

A study is a file of configs/ablations, or your own file like those: a config, and the
settings that differ in each variant. Finished variants are not trained again, and an
interrupted one resumes from its last checkpoint. Processes with the same --out share
the variants. Writes table.md, results.json and plot.png after every training.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from _cli import run

from ablation.costs import study_costs
from ablation.run import train_variants, write
from ablation.study import STUDIES, read_study
from training.folder import check_folder
from training.length import UNITS, Length

from mmsparse.apis import add_cfg_options
from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    study = read_study(args.study)
    study = replace(study, changes=study.changes | args.cfg_options)
    out = Path(args.out or Path('work_dirs', 'ablations', study.name))
    check_folder(out)
    length = chosen_length(args) or study.length
    if length.number < 1:
        raise UsageError(f'--{length.unit} must be at least 1; got {length.number}')
    costs = study_costs(out, study, length, args.pretrained)
    settings = dict(seeds=args.seeds, pretrained=args.pretrained)
    written = []
    for rows in train_variants(study, costs, length=length, **settings, out=out):
        if rows:
            written = write(out, study, length, settings, rows)
    if written:
        print(written[0].read_text())
    print('\n'.join(map(str, written)))


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
