"""Evaluate a checkpoint on the test data of its config.

Prints the metrics; --out also writes them as JSON and prints the path.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from _cli import check_files, filter_log, run

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from mmsparse.apis import build_runner, config_arguments, load_config, load_weights
from mmsparse.errors import UsageError


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


def use_tta(cfg: Config, pipeline: str) -> None:
    """Switch a config to test-time augmentation by one of its pipelines."""
    for name in (pipeline, 'tta_model'):
        if name not in cfg:
            raise UsageError(f'--tta needs {name} in the config')
    cfg.test_dataloader.dataset.pipeline = cfg[pipeline]
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    drop_kept_tokens(cfg)


def drop_kept_tokens(cfg: Config) -> None:
    """Remove the recall of kept tokens: each augmented image keeps others."""
    metrics = cfg.test_evaluator
    metrics = metrics if isinstance(metrics, Sequence) else [metrics]
    cfg.test_evaluator = [x for x in metrics if x.type != 'mmsparse.KeptTokenRecall']
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [x for x in hooks if x.type != 'mmsparse.KeptTokensHook']


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
        help='test-time augmentation by this pipeline of CONFIG (tta_pipeline)',
    )
    config_arguments(parser)
    return parser.parse_args()


if __name__ == '__main__':
    run(main)
