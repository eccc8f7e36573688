"""Check that schedules and checkpoints count what the training loop counts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmsparse.checks.keywords import type_name
from mmsparse.errors import UsageError

# Settings of OpenMMLab 1.x, and those of 2.x that have their effect. MMEngine ignores
# the old ones.
OLD = {
    'lr_config': 'param_scheduler',
    'optimizer_config': 'optim_wrapper.clip_grad',
    'checkpoint_config': 'default_hooks.checkpoint',
    'log_config': 'default_hooks.logger and visualizer',
    'evaluation': 'val_evaluator and train_cfg.val_interval',
    'total_epochs': 'train_cfg.max_epochs',
    'data.train': 'train_dataloader.dataset',
}


def check_schedule(cfg: Config) -> None:
    """Raise UsageError for schedules that never take effect.

    In a training by iterations these are schedulers and checkpoints by epoch; in any,
    settings of OpenMMLab 1.x.
    """
    for name, new in OLD.items():
        part, _, key = name.partition('.')
        value = cfg.get(part)
        if key:
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, (Mapping, int)):
            raise UsageError(
                f'{name} is a setting of OpenMMLab 1.x and has no effect; set {new}.'
            )
    loop = cfg.get('train_cfg') or {}
    for name in ('max_epochs', 'max_iters', 'val_interval'):
        value = loop.get(name)
        if type(value) is int and value < 1:
            raise UsageError(f'train_cfg.{name}={value} must be at least 1.')
    if not _is_by_iteration(loop):
        return
    for path, scheduler in _schedulers(cfg.get('param_scheduler')):
        if scheduler.get('by_epoch', True):
            raise UsageError(
                f'{path}.by_epoch is True, but train_cfg trains by iterations, so that '
                f'the {type_name(scheduler)} would never step; set by_epoch=False and '
                f'begin, end and milestones in iterations.'
            )
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    if type_name(hook) == 'CheckpointHook' and hook.get('by_epoch', True):
        raise UsageError(
            'default_hooks.checkpoint.by_epoch is True, but train_cfg trains by '
            'iterations, so that nothing would be saved before the end; set '
            'by_epoch=False and interval in iterations.'
        )


def _is_by_iteration(loop: Mapping[str, Any]) -> bool:
    if 'type' in loop:
        return type_name(loop) == 'IterBasedTrainLoop'
    return loop.get('by_epoch', True) is False


def _schedulers(settings: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(settings, Mapping):
        yield 'param_scheduler', settings
    elif isinstance(settings, Sequence):
        for i, scheduler in enumerate(settings):
            if isinstance(scheduler, Mapping):
                yield f'param_scheduler[{i}]', scheduler
