"""Length of the training runs of a study: a number of epochs or of iterations."""

from dataclasses import dataclass
from typing import Any

from mmengine.config import Config

from mmsparse.errors import UsageError

UNITS = ('epochs', 'iterations')
STEPS = ('begin', 'end', 'T_max', 'step_size', 'milestones')  # of a scheduler
WARM_UP = 0.1  # of the iterations, at most
CHECKPOINTS = 4  # of a training by iterations


@dataclass(frozen=True)
class Length:
    """Length of a training.

    Args:
        number: How many, at least 1.
        unit: One of `UNITS`.
    """

    number: int
    unit: str

    def __str__(self) -> str:
        return f'{self.number} {self.unit if self.number > 1 else self.unit[:-1]}'

    def apply(self, cfg: Config) -> None:
        """Set the length in a config, which is evaluated once, at the end.

        Args:
            cfg: Config, which is changed.

        Raises:
            UsageError: The config trains by iterations, but the length is in epochs.
        """
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        if self.unit == 'iterations':
            train_by_iterations(cfg, self.number)
        elif 'max_epochs' in (cfg.get('train_cfg') or {}):
            cfg.train_cfg.max_epochs = self.number
        else:
            raise UsageError(
                f'{cfg.filename} trains by iterations; give iterations instead of '
                'epochs'
            )


def train_by_iterations(cfg: Config, number: int) -> None:
    """Set the iterations of a config, whose learning rate schedule shrinks to them."""
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    cfg.param_scheduler = [
        rescale(scheduler, cfg.get('train_cfg') or {}, number)
        for scheduler in schedulers
    ]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=number)
    cfg.log_processor = dict(cfg.get('log_processor') or {}, by_epoch=False)
    cfg.default_hooks.checkpoint.update(
        by_epoch=False, interval=-(-number // CHECKPOINTS)
    )


def rescale(
    scheduler: dict[str, Any], train_cfg: dict[str, Any], number: int
) -> dict[str, Any]:
    """Return a scheduler for another length.

    Args:
        scheduler: Scheduler of a config.
        train_cfg: Training loop of that config.
        number: Iterations of the new training.

    Returns:
        A scheduler that changes in each iteration, after the same fraction of the
        training as before. In a config of epochs, a warm-up of iterations stays, but is
        at most a tenth of the training.
    """
    scheduler = dict(scheduler)
    scheduler.pop('convert_to_iter_based', None)
    unit = 'max_epochs' if scheduler.get('by_epoch', True) else 'max_iters'
    if unit in train_cfg:
        factor = number / train_cfg[unit]
    else:
        factor = min(1, WARM_UP * number / scheduler.get('end', 1))
    for name in STEPS & scheduler.keys():
        scheduler[name] = scaled(scheduler[name], factor)
    return scheduler | dict(by_epoch=False)


def scaled(steps: int | list[int], factor: float) -> int | list[int]:
    """Return the start of a training for 0, and otherwise at least one iteration."""
    if isinstance(steps, list):
        return [scaled(step, factor) for step in steps]
    return max(1, round(steps * factor)) if steps else 0
