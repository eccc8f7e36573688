"""Measure the tables of a command, print them and write their record and plot."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time

from benchmark.operators import plot_scaling
from benchmark.report import as_json, environment, figures, plot, record, table
from benchmark.timing import (
    FORWARD,
    TRAINING,
    Candidate,
    Measurement,
    matmul_throughput,
    measure,
)

Tables = Iterator[tuple[str | int, list[Candidate]]]  # title, and what is compared


def compare(
    title: str | int, candidates: list[Candidate], args: argparse.Namespace
) -> list[Measurement]:
    """Measure candidates and print their table."""
    title = f'{title}x{title}' if isinstance(title, int) else title
    measurements = measure(
        candidates,
        args.repeats,
        args.device,
        lambda line: log(f'{title}: {line}'),
        process_time if args.cpu_time else None,
    )
    print(f'\n{title}\n{table(measurements)}\n', flush=True)
    if any(x.macs for x in measurements):
        print_throughput(measurements, matmul_throughput(args.device))
    return measurements


def print_throughput(measurements: list[Measurement], matmul: float) -> None:
    """Print the throughput relative to large matrix products.

    The backward pass counts as two forward passes.
    """
    print(f'large matrix products reach {matmul / 1e9:,.0f} GMACs/s; of that')
    for measured in measurements:
        work = matmul / measured.macs  # forward passes per second
        shares = (
            f'{part} {passes / measured.median_seconds(part) / work:.0%}'
            for part, passes in ((FORWARD, 1), (TRAINING, 3))
            if part in measured.seconds
        )
        print(
            f'  {measured.name} ({measured.macs / 1e9:.1f} GMACs): {", ".join(shares)}'
        )


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write(
    results: dict[str | int, list[Measurement]], args: argparse.Namespace
) -> None:
    where = environment(args.device)
    versions = ', '.join(f'{k} {v}' for k, v in where['versions'].items())
    machine = record(args.device)['machine']
    cpu_time = ' in CPU time' if args.cpu_time else ''
    what = (
        f'Medians of {args.repeats} rounds{cpu_time}; ratios are medians of the ratios '
        'to the first row in each round. Memory is the peak that a run allocates, '
        'without weights and images.'
    )
    print(
        f'{machine}, {where["cores"]} cores, load {where["load"]}; '
        f'Python {where["python"]}, {versions}\n{what}'
    )
    if args.json:
        rows = figures(results)
        for title, costs in getattr(args, 'costs', {}).items():
            for name, cost in costs.items():
                row = name if len(results) == 1 else f'{title}: {name}'
                rows[row] |= {f'cost: {column}': text for column, text in cost.items()}
        for title, errors in getattr(args, 'errors', {}).items():
            for name, error in errors.items():
                row = name if len(results) == 1 else f'{title}: {name}'
                rows[row]['error'] = f'{error:.1%}'
        content = dict(
            title=f'Benchmark of {args.command}',
            what=what,
            **record(args.device),
            figures=rows,
            environment=where,
            results={name: as_json(rows) for name, rows in results.items()},
        )
        Path(args.json).write_text(json.dumps(content, indent=2) + '\n')
        print(args.json)
    if args.plot:
        draw = plot_scaling if args.command == 'ops' else plot
        draw(results, args.plot, machine)
        print(args.plot)
