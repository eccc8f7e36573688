"""Count the parameters and multiply-adds of a model."""

import argparse
import json
import sys

from mmsparse.analysis.flops import Part, measure, published_classifiers
from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    if args.zoo:
        for model in published_classifiers():
            entry = dict(arch=model.name, params=model.parameters, macs=model.macs)
            print(json.dumps(entry), flush=True)
        return
    try:
        if min(args.shape) < 1:
            raise ValueError(
                f'--shape must be two positive numbers; got {args.shape[0]} '
                f'{args.shape[1]}'
            )
        model = build_model(read_config(args.config))
        parts = measure(model, tuple(args.shape))
    except (UsageError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{args.config}, one picture of {args.shape[0]}x{args.shape[1]}')
    print(table(parts))


def table(parts: list[Part]) -> str:
    rows = [('', 'parameters', 'multiply-adds')]
    for part in parts:
        indent = '  ' * part.name.count('.')
        macs = 'not run' if part.macs is None else f'{part.macs:,}'
        name = part.name.rpartition('.')[2]
        rows.append((indent + name, f'{part.parameters:,}', macs))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return '\n'.join(
        f'{name:{widths[0]}}  {parameters:>{widths[1]}}  {macs:>{widths[2]}}'
        for name, parameters, macs in rows
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Counted are convolutions, linear maps, products of attention, and 4 '
        'for each sampled value. Detectors are run up to their neck.',
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('config', nargs='?', help='configuration file')
    what.add_argument(
        '--zoo',
        action='store_true',
        help='every published classifier at its own size, one line of JSON each',
    )
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        default=(224, 224),
        metavar=('H', 'W'),
        help='height and width of the picture, 224 224 by default',
    )
    return parser.parse_args()


if __name__ == '__main__':
    main()
