"""Train and evaluate three small models on the digits, one for each task.

The backbone of the classifier initializes the segmentor's and the detector's, as
ImageNet weights do for larger models; these two are trained side by side. Writes
report.html, report.png and summary.json into the output folder, the first of them
within minutes. When it is interrupted, the same command resumes.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from _cli import run

from _processes import available_cores
from benchmark.report import align
from quickstart import report
from quickstart.schedule import free_cores
from quickstart.session import locked, run_interruptible, train_all
from quickstart.tasks import MODELS, ROOT, Job, Result, plan
from quickstart.training import train_job
from training.folder import check_folder

from mmsparse.errors import UsageError
from mmsparse.models.backbones import BACKBONES


def main() -> int:
    args = parse_args()
    return run_interruptible(lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Train what is not finished, and print the results."""
    out = Path(args.out)
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    data = [sys.executable, ROOT / 'tools' / 'prepare_digits.py']
    if subprocess.run(data, cwd=ROOT).returncode:
        raise UsageError('the digits could not be prepared')
    size = MODELS[args.backbone].split('-')[1]
    title = f'{BACKBONES[args.backbone].__name__}-{size}'
    with locked(out):
        jobs = plan(args.backbone, out, args.seed)
        for job in jobs.values():
            job.prepare_folder(args.restart)
        if all(job.read_result() for job in jobs.values()):
            print(f'all models in {out} are trained; train again with --restart')
        else:
            cores = free_cores()
            where = f'{cores} of {available_cores()} cores'
            print(f'training {title} on {where}', flush=True)
            train_all(jobs, out, cores, title, train_job)
        print_results(jobs, report.write(out, title, jobs))


def print_results(jobs: Mapping[str, Job], written: Sequence[Path]) -> None:
    """Print the table of the results and the files of the report."""
    results = [Result(**job.read_result()['result']) for job in jobs.values()]
    rows = [['', *report.columns(results[0])]]
    rows += [[result.task, *report.columns(result).values()] for result in results]
    print(f'\n{align(rows)}\n')
    print('\n'.join(map(str, written)))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--backbone',
        choices=MODELS,
        default='biformer',
        help='family of the backbone (%(default)s)',
    )
    parser.add_argument(
        '--out', default='work_dirs/quickstart', help='output folder (%(default)s)'
    )
    parser.add_argument(
        '--seed',
        type=int,
        default=0,
        metavar='N',
        help='random seed of the models and the order of the images (%(default)s)',
    )
    parser.add_argument('--restart', action='store_true', help='train all models again')
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
