"""Evaluate a checkpoint on the test data of its config.

Prints the metrics; --out also writes them as JSON and prints the path.
"""

import argparse
import json
from pathlib import Path

from _cli import check_files, filter_log, run

from mmengine.dist import is_main_process
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmsparse.apis import (
    build_runner,
    config_arguments,
    load_config,
    load_weights,
    use_tta,
)


def main() -> None:
    args = parse_args()
    check_files(args.checkpoint)
    cfg = load_config(args, 'test_dataloader')
    if args.tta:
        use_tta(cfg, args.tta)
    cfg.load_from, cfg.resume = args.checkpoint, False
    cfg.pop('strategy', None)  # of a training with FSDP or DeepSpeed
    runner = build_runner(cfg)
    filter_log(runner.logger)
    check_fit(runner.model, args.checkpoint)
    metrics = runner.test()
    if args.out and is_main_process():
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(metrics, indent=2, default=float) + '\n')
        print(args.out)


def check_fit(model: nn.Module, checkpoint: str) -> None:
    """Raise UsageError for a mismatch that mmengine only warns of."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    load_weights(model, checkpoint, allow_unexpected=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', metavar='FILE', help='write the metrics as JSON')
    parser.add_argument(
        '--tta',
        nargs='?',
        const='tta_pipeline',
        metavar='PIPELINE',
        help='test-time augmentation by this pipeline of CONFIG (tta_pipeline; if '
        'CONFIG has none, images and flipped images)',
    )
    config_arguments(parser)
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
