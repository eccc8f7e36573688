"""Compare models of mmsparse with stored outputs of the official implementations."""

import argparse
from collections import Counter

from _cli import run

import torch
from parity import Case, check_case, find_cases


def main() -> bool:
    args = parse_args()
    torch.set_num_threads(args.threads)
    counts: Counter[str] = Counter()
    for path in find_cases(args.folders):
        verdict = check_case(Case.read(path))
        counts[verdict.status] += 1
        error = '-' if verdict.error is None else f'{verdict.error:.3f}'
        print(f'{path.stem:32} {error:>8}  {verdict.status} ({verdict.detail})')
    print(
        f'{counts["passed"]} passed, {counts["failed"]} failed, '
        f'{counts["unsupported"]} unsupported'
    )
    return counts['failed'] > 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Each line shows the largest error relative to its tolerance; up to 1 '
        'passes.',
    )
    parser.add_argument(
        'folders', nargs='+', metavar='DIR', help='folders, searched for golden cases'
    )
    parser.add_argument(
        '--threads',
        type=int,
        default=1,
        help='CPU threads of torch; default 1, as for the golden files',
    )
    return parser.parse_args()


if __name__ == '__main__':
    run(main, FileNotFoundError)
