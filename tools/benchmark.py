"""Compare time and memory of models and ops on this machine."""

import argparse
import warnings
from importlib.util import find_spec
from pathlib import Path

from _cli import run

import torch
from benchmark.comparison import Tables, compare, write
from benchmark.gpu import run_job
from benchmark.operators import operator_candidates
from benchmark.options import parse_args
from benchmark.report import PLOT_FORMATS
from benchmark.tuning import tune

from mmsparse.engine.memory import keep_freed_memory
from mmsparse.errors import UsageError

# A machine for `gpu` may have torch alone.
if find_spec('mmengine') is not None:
    from benchmark.models import COMMANDS
else:
    COMMANDS = {}


def main() -> int | None:
    args = parse_args(__doc__)
    warnings.filterwarnings('ignore', module='torch')
    if args.command == 'gpu':
        return run_job(args)
    check(args)
    keep_freed_memory()  # as in a training
    args.device = torch.device(args.device)
    if args.command == 'ops' and args.tune:
        print(tune(args.device))
        return None
    results = {}
    command = operators if args.command == 'ops' else COMMANDS[args.command]
    for title, candidates in command(args):
        results[title] = compare(title, candidates, args)
    write(results, args)
    return None


def check(args: argparse.Namespace) -> None:
    """Check all options before anything is measured."""
    if args.plot and Path(args.plot).suffix not in PLOT_FORMATS:
        raise UsageError(f'--plot must end with one of {PLOT_FORMATS}; got {args.plot}')
    for path in filter(None, (args.json, args.plot)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    for name in ('repeats', 'threads', 'batch_size'):
        if getattr(args, name, None) is not None and getattr(args, name) < 1:
            option = name.replace('_', '-')
            raise UsageError(
                f'--{option} must be at least 1; got {getattr(args, name)}'
            )
    if args.threads is not None:
        torch.set_num_threads(args.threads)


def operators(args: argparse.Namespace) -> Tables:
    for pixels in args.pixels:
        yield (
            pixels,
            operator_candidates(
                pixels, args.device, args.limit * 2**30, not args.no_training
            ),
        )


if __name__ == '__main__':
    run(main, ValueError, OSError)
