"""Train and predict for long at changing sizes, and see whether memory grows.

Pictures are noise. Exits with 1 if the process, or what its tensors take, grows after
the first iterations.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from benchmark.batches import random_batch
from benchmark.growth import Held, follow_memory, growth
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError

PARTS = 20  # of a run, after each of which memory is looked at
BATCH = 2  # pictures
MEGABYTE = 2**20


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    random.seed(0)
    try:
        check(args)
        cfg = read_config(args.config)
        found = {
            'training': follow('training', trainer(cfg, args), args),
            'inference': follow('inference', predictor(cfg, args), args),
        }
    except UsageError as error:
        sys.exit(f'error: {error}')
    out = Path(
        args.out or Path('work_dirs', 'memory', f'{Path(args.config).stem}.json')
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1) + '\n')
    print(out)
    grown = [name for name, held in found.items() if has_grown(name, held, args)]
    if grown:
        sys.exit(f'error: memory grew in {" and ".join(grown)}')


def check(args: argparse.Namespace) -> None:
    low, high = args.sides
    if not 1 <= low < high:
        raise UsageError(
            f'--sides: two numbers of pixels, the first less; got {low} {high}'
        )
    if args.iterations % PARTS or not 0 < args.warm_up < args.iterations:
        raise UsageError(
            f'--iterations must be a multiple of {PARTS}, and --warm-up less; got '
            f'{args.iterations} and {args.warm_up}'
        )


def trainer(cfg: Config, args: argparse.Namespace) -> Any:
    """One step of training at a size drawn at random."""
    model = build_model(cfg).to(args.device).train()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=1e-5))
    return lambda: model.train_step(draw(cfg, args), optimizer)


def predictor(cfg: Config, args: argparse.Namespace) -> Any:
    """The prediction of pictures of a size drawn at random."""
    model = build_model(cfg).to(args.device).eval()
    return torch.no_grad()(lambda: model.test_step(draw(cfg, args)))


def draw(cfg: Config, args: argparse.Namespace) -> dict[str, Any]:
    size = (random.randint(*args.sides), random.randint(*args.sides))
    return random_batch(cfg, size, BATCH)


def follow(name: str, step: Any, args: argparse.Namespace) -> list[Held]:
    """Run, and print what is held."""
    held = []
    every = args.iterations // PARTS
    for now in follow_memory(step, args.iterations, every, torch.device(args.device)):
        held.append(now)
        process, tensors = (x / MEGABYTE for x in (now.process, now.tensors))
        print(
            f'{name}, {now.iteration} of {args.iterations}: process {process:.0f} MiB, '
            f'tensors {tensors:.1f} MiB',
            flush=True,
        )
    return held


def has_grown(name: str, held: list[Held], args: argparse.Namespace) -> bool:
    more = growth(held, args.warm_up)
    print(
        f'{name}, the most after {args.warm_up} iterations beside the most until then: '
        f'process {more.process / MEGABYTE:+.1f} MiB, '
        f'tensors {more.tensors / MEGABYTE:+.1f} MiB'
    )
    return max(more.process, more.tensors) > args.tolerance * MEGABYTE


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='configuration file')
    parser.add_argument(
        '--iterations',
        type=int,
        default=2000,
        help=f'of training, and then of inference; a multiple of {PARTS} (%(default)s)',
    )
    parser.add_argument(
        '--warm-up',
        type=int,
        default=200,
        help='iterations in which memory may grow (%(default)s)',
    )
    parser.add_argument(
        '--sides',
        type=int,
        nargs=2,
        default=(64, 160),
        metavar=('FROM', 'TO'),
        help='least and largest side of the pictures (64 160)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=16,
        metavar='MIB',
        help='growth that is not taken for one (%(default)s)',
    )
    parser.add_argument('--device', default='cpu', help='cpu or cuda (%(default)s)')
    parser.add_argument(
        '--out', metavar='FILE', help='JSON; work_dirs/memory/CONFIG.json'
    )
    return parser.parse_args()


if __name__ == '__main__':
    main()
