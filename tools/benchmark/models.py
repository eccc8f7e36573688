"""Commands that compare models; they need mmengine and the host of a model."""

import argparse
import tempfile
from pathlib import Path

from benchmark.backbone import backbone_candidates
from benchmark.comparison import Tables, log
from benchmark.detector import config_candidates, detector_candidates
from benchmark.export import export_candidates
from benchmark.precision import FLOAT32, precision_candidates, read_images
from benchmark.report import align
from benchmark.segmentor import prediction_candidate, training_candidates
from mmsparse.apis import read_config
from mmsparse.errors import UsageError


def detector(args: argparse.Namespace) -> Tables:
    args.costs = {}
    for height, width in args.sizes:
        title = f'{args.batch_size}x{height}x{width}'
        log(f'{title}: building')
        run = ((height, width), args.batch_size, args.device)
        if len(args.configs) == 1:
            cfg = read_config(str(args.configs[0]), args.cfg_options)
            yield title, detector_candidates(cfg, args.keep, *run)
            continue
        candidates, costs = config_candidates(args.configs, args.cfg_options, *run)
        args.costs[title] = costs
        columns = next(iter(costs.values()))
        rows = [[name, *cost.values()] for name, cost in costs.items()]
        print(f'\n{title}: parameters, GMACs, published AP')
        print(align([['', *columns], *rows]))
        yield title, candidates


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
    'backbone': backbone,
    'detector': detector,
    'segmentor': segmentor,
    'export': export,
}
