"""Train a model of mmdet, mmsegmentation or mmpretrain from its configuration."""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS

from mmsparse.apis.model import (
    check_pretrained,
    config_arguments,
    load_config,
)
from mmsparse.checkpoint.mmengine import register_safe_loader
from mmsparse.datasets.errors import name_files
from mmsparse.engine.checkpoints import find_damage, last_whole_checkpoint
from mmsparse.errors import UsageError, config_errors


def main() -> None:
    args = parse_args()
    try:
        cfg = load_config(args)
        check_pretrained(cfg)
        add_safeguards(cfg)
        apply_training_options(cfg, args)
        with config_errors():
            runner = RUNNERS.build(cfg)  # MMEngine's Runner, or the cfg.runner_type
        register_safe_loader()
        name_files(runner)
        runner.train()
    except UsageError as error:
        sys.exit(f'error: {error}')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='configuration file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='go on from the checkpoint, by default the last one in the work directory',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (needs a GPU)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch size, see auto_scale_lr in CONFIG',
    )
    config_arguments(parser)
    return parser.parse_args()


def apply_training_options(cfg: Config, args: argparse.Namespace) -> None:
    if args.amp:
        if not torch.cuda.is_available():
            raise UsageError('--amp needs a GPU; none is available')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.auto_scale_lr:
        if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise UsageError(
                f'--auto-scale-lr needs auto_scale_lr.base_batch_size in {args.config}'
            )
        cfg.auto_scale_lr.enable = True
    if args.resume:
        resume(cfg, args.resume)


def add_safeguards(cfg: Config) -> None:
    """Write whole checkpoints, draw the same numbers after a stop, stop at NaN."""
    saving = cfg.setdefault('default_hooks', {}).setdefault('checkpoint', {})
    saving.setdefault('type', 'CheckpointHook')
    saving.setdefault('backend_args', dict(backend='whole_file'))
    names = ('mmsparse.RepeatableRandomness', 'mmsparse.StopAtNaN')
    hooks = cfg.get('custom_hooks') or []
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in names)]


def resume(cfg: Config, wanted: str) -> None:
    """Go on from a checkpoint, ``auto`` for the last one that is whole."""
    path = last_whole_checkpoint(cfg.work_dir) if wanted == 'auto' else wanted
    if wanted != 'auto' and '://' not in wanted:
        if not Path(wanted).exists():
            raise UsageError(f'--resume: no such checkpoint: {wanted}')
        if fault := find_damage(wanted):
            raise UsageError(f'--resume: {wanted} is damaged ({fault})')
    if path is None:
        print(f'--resume: no checkpoint in {cfg.work_dir}; training from the start')
        return
    cfg.resume, cfg.load_from = True, str(path)


if __name__ == '__main__':
    main()
