"""Train a model of mmdet, mmseg or mmpretrain from a config.

Prints the path of the last checkpoint. The hooks that make training safe come from
configs/_base_/mmsparse.py.
"""

import argparse
from pathlib import Path

from _cli import filter_log, run

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process

from mmsparse.apis import build_runner, config_arguments, load_config
from mmsparse.engine.checkpoints import find_damage, last_whole_checkpoint
from mmsparse.engine.hooks.stop_at_nan import NotFiniteError
from mmsparse.errors import UsageError


def main() -> None:
    args = parse_args()
    cfg = load_config(args, 'train_dataloader', 'val_dataloader')
    apply_options(cfg, args)
    runner = build_runner(cfg)
    filter_log(runner.logger)
    runner.train()
    if is_main_process():
        last = Path(cfg.work_dir, 'last_checkpoint')
        print(last.read_text() if last.is_file() else cfg.work_dir)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from the checkpoint (default: the last one in the work directory)',
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (needs a GPU)'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the batch size, by auto_scale_lr in CONFIG',
    )
    config_arguments(parser)
    return parser.parse_args()


def apply_options(cfg: Config, args: argparse.Namespace) -> None:
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


def resume(cfg: Config, checkpoint: str) -> None:
    """Resume from a checkpoint, or from the last undamaged one if it is 'auto'."""
    path = checkpoint
    if checkpoint == 'auto':
        path = last_whole_checkpoint(cfg.work_dir)
    elif '://' not in checkpoint and (damage := find_damage(checkpoint)):
        raise UsageError(f'--resume: {checkpoint}: {damage}')
    if path is None:
        print(f'--resume: no checkpoint in {cfg.work_dir}; training from the start')
        return
    cfg.resume, cfg.load_from = True, str(path)


if __name__ == '__main__':
    run(main, NotFiniteError)
