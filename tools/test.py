"""Evaluate a checkpoint on the test data of its configuration."""

import argparse
import json
import sys
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmsparse.apis.model import (
    augment_pictures,
    config_arguments,
    load_config,
    load_weights,
)
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.datasets.errors import name_files
from mmsparse.errors import UsageError, config_errors


def main() -> None:
    args = parse_args()
    try:
        if not Path(args.checkpoint).is_file():
            raise UsageError(f'checkpoint: no such file: {args.checkpoint}')
        cfg = load_config(args)
        if args.tta:
            augment_pictures(cfg, args.tta)
        cfg.load_from = args.checkpoint
        register_safe_loader()
        with config_errors():
            runner = Runner.from_cfg(cfg)
        check_fit(runner.model, args.checkpoint)
        name_files(runner)
        metrics = runner.test()
    except UsageError as error:
        sys.exit(f'error: {error}')
    if args.out and is_main_process():
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(metrics, indent=2, default=float) + '\n')
        print(args.out)


def check_fit(model: nn.Module, checkpoint: str) -> None:
    """Raise UsageError for weights that MMEngine, which loads them, only warns of."""
    while isinstance(model, (nn.parallel.DistributedDataParallel, BaseTTAModel)):
        model = model.module
    if not is_model_wrapper(model):
        load_weights(model, checkpoint, allow_unexpected=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='configuration file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE', help='write the metrics as JSON')
    parser.add_argument(
        '--tta',
        nargs='?',
        const='tta_pipeline',
        metavar='PIPELINE',
        help='test-time augmentation, by the tta_pipeline of CONFIG or by another name',
    )
    config_arguments(parser)
    return parser.parse_args()


if __name__ == '__main__':
    main()
