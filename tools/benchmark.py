"""Compare time and memory of models and ops on this machine."""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import process_time

from _cli import run

import torch
from benchmark import Candidate, Measurement, measure
from benchmark.backbone import (
    FORWARD,
    TRAINING,
    backbone_candidates,
    matmul_throughput,
)
from benchmark.detector import detector_candidates
from benchmark.export import export_candidates
from benchmark.operators import operator_candidates, plot_scaling
from benchmark.options import parse_args
from benchmark.precision import FLOAT32, precision_candidates, read_images
from benchmark.report import (
    PLOT_FORMATS,
    as_json,
    environment,
    figures,
    plot,
    record,
    table,
)
from benchmark.segmentor import prediction_candidate, training_candidates

from mmsparse.apis import read_config
from mmsparse.errors import UsageError

Tables = Iterator[tuple[str | int, list[Candidate]]]  # title, and what is compared


def main() -> None:
    args = parse_args(__doc__)
    warnings.filterwarnings('ignore', module='torch')
    check(args)
    args.device = torch.device(args.device)
    results = {}
    for title, candidates in COMMANDS[args.command](args):
        results[title] = compare(title, candidates, args)
    write(results, args)


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


def detector(args: argparse.Namespace) -> Tables:
    cfg = read_config(str(args.config), args.cfg_options)
    for height, width in args.sizes:
        title = f'{args.batch_size}x{height}x{width}'
        log(f'{title}: building')
        yield (
            title,
            detector_candidates(
                cfg, args.keep, (height, width), args.batch_size, args.device
            ),
        )


def segmentor(args: argparse.Namespace) -> Tables:
    for path in args.configs:
        log(f'{path}: building')
        cfg = read_config(path, args.cfg_options)
        height, width = args.crop
        yield (
            f'{Path(path).stem}, training on {args.batch_size}x{height}x{width}',
            training_candidates(cfg, args.crop, args.batch_size, args.device),
        )
        height, width = args.image
        yield (
            f'{Path(path).stem}, prediction of 1x{height}x{width}',
            [prediction_candidate(cfg, args.image, args.device)],
        )


def backbone(args: argparse.Namespace) -> Tables:
    for path in args.configs:
        log(f'{path}: building')
        height, width = args.size
        yield (
            f'{Path(path).stem}, {args.batch_size}x{height}x{width}',
            backbone_candidates(
                read_config(path, args.cfg_options),
                args.size,
                args.batch_size,
                args.device,
                reference=not args.no_reference,
                training=not args.no_training,
                timm=not args.no_timm,
            ),
        )


def export(args: argparse.Namespace) -> Tables:
    if args.device.type != 'cpu':
        raise UsageError(f'--device must be cpu to compare exports; got {args.device}')
    height, width = args.size
    for path in args.configs:
        log(f'{path}: exporting')
        with tempfile.TemporaryDirectory() as folder:
            candidates = export_candidates(
                read_config(path, args.cfg_options),
                args.size,
                args.batch_size,
                args.samplers,
                Path(folder),
            )
        yield f'{Path(path).stem}, {args.batch_size}x{height}x{width}', candidates


def operators(args: argparse.Namespace) -> Tables:
    for pixels in args.pixels:
        yield (
            pixels,
            operator_candidates(
                pixels, args.device, args.limit * 2**30, not args.no_training
            ),
        )


def precision(args: argparse.Namespace) -> Tables:
    args.errors = {}
    height, width = args.size
    for path in args.configs:
        cfg = read_config(path, args.cfg_options)
        for batch_size in args.batch_sizes:
            title = f'{Path(path).stem}, {batch_size}x{height}x{width}'
            log(f'{title}: building')
            images = read_images(cfg, args.images, args.size, batch_size)
            candidates, args.errors[title] = precision_candidates(
                cfg, args.checkpoint, images.to(args.device), args.precisions
            )
            yield title, candidates
            for name, error in args.errors[title].items():
                print(f'{name}: error {error:.2%} of {FLOAT32}')


COMMANDS = {
    'precision': precision,
    'ops': operators,
    'backbone': backbone,
    'detector': detector,
    'segmentor': segmentor,
    'export': export,
}


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


if __name__ == '__main__':
    run(main, ValueError, OSError)
