"""Train and evaluate three nano models on the digits, one for each task.

The backbone of the classifier initializes the segmentor's, as ImageNet weights do for
larger models, and that of the segmentor the detector's. Writes summary.json and
report.png into the output folder.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from _cli import run

from ablation.training import check_folder
from quickstart.tasks import FAMILIES, ROOT, run_tasks, write

from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    out = Path(args.out)
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    data = [sys.executable, ROOT / 'tools' / 'prepare_digits.py']
    if subprocess.run(data, cwd=ROOT).returncode:
        raise UsageError('the digits could not be prepared')
    results, rows = run_tasks(args.backbone, out)
    print('\n'.join(map(str, write(out, args.backbone, results, rows))))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--backbone',
        choices=FAMILIES,
        default='biformer',
        help='backbone, in its nano size (%(default)s)',
    )
    parser.add_argument(
        '--out', default='work_dirs/quickstart', help='output folder (%(default)s)'
    )
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
