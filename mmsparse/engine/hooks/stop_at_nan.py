"""Stop training when the model computes NaN or infinite values, and write a report."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmsparse.engine.checkpoints import last_whole_checkpoint
from mmsparse.engine.not_finite import (
    bad_weights,
    first_bad_module,
    first_bad_variable,
)
from mmsparse.errors import UsageError, format_error
from mmsparse.registry import HOOKS

REPORT = 'nan_report.json'
# scipy's, for costs that are NaN, and infinite; the predictions may still be finite.
MATCHER_ERRORS = ('invalid numeric entries', 'cost matrix is infeasible')


class NotFiniteError(RuntimeError):
    """A loss, prediction or weight is NaN or infinite."""


class _LossError(ValueError):
    """Losses are NaN or infinite; ``losses`` has all."""

    def __init__(self, losses: dict[str, float]) -> None:
        super().__init__()
        self.losses = losses


@HOOKS.register_module()
class StopAtNaN(Hook):
    """Stop training at NaN and infinite values, before they change the weights.

    A training step that fails, or whose loss is NaN or infinite, is examined: if
    weights, outputs of modules or costs of a matcher are NaN or infinite, it ends with
    NotFiniteError, else as without the hook. The search for the first module computes
    the step again, in one process only. Infinite gradients, which loss scaling
    skips, are no failure.

    ``nan_report.json`` in the work directory has the iteration, the losses, the first
    module, the weights, the error, the files of the batch and the last undamaged
    checkpoint.
    """

    priority = 'HIGH'

    def __init__(self) -> None:
        self._iteration = 0
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        """Check the losses between forward and backward pass, and examine failures."""
        model = _unwrap(runner.model)
        model.parse_losses = _with_check(model.parse_losses)
        train_step = runner.model.train_step

        def examined(data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
            try:
                return train_step(data, optim_wrapper)
            except Exception as error:
                found = _examine(error, model, lambda: train_step(data, optim_wrapper))
                if not found:
                    raise
                raise self._report(runner.work_dir, found) from error

        runner.model.train_step = examined

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Remember the iteration and its batch for the report."""
        self._iteration, self._batch = runner.iter + 1, data_batch

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise NotFiniteError if the last update has made weights NaN or infinite."""
        if weights := bad_weights(_unwrap(runner.model)):
            raise self._report(runner.work_dir, _Findings(weights=weights))

    def _report(self, work_dir: str, found: '_Findings') -> NotFiniteError:
        """Write the report and return the error."""
        try:
            checkpoint = last_whole_checkpoint(work_dir)
        except UsageError:
            checkpoint = None
        report = dict(
            iteration=self._iteration,
            losses={name: str(value) for name, value in found.losses.items()},
            weights=found.weights,
            first=found.first,
            error=found.error,
            files=list(_files(self._batch)),
            last_checkpoint=checkpoint and str(checkpoint),
        )
        path = Path(work_dir, REPORT)
        path.write_text(json.dumps(report, indent=1) + '\n')
        return NotFiniteError(
            f'NaN or infinite {found} in iteration {self._iteration}. The files of the '
            f'batch are in {path}; last undamaged checkpoint: {checkpoint or "none"}. '
            f'Inspect these files, lower the learning rate, clip gradients '
            f'(optim_wrapper.clip_grad) or train in single precision.'
        )


@dataclass
class _Findings:
    """What is NaN or infinite."""

    losses: dict[str, float] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    first: str = ''  # module or variable
    error: str = ''

    def __str__(self) -> str:
        if self.weights:
            name, *others = self.weights
            return f'weights ({name}{f" and {len(others)} more" if others else ""})'
        bad = {k: value for k, value in self.losses.items() if not math.isfinite(value)}
        what = f'losses {bad}' if bad else f'predictions ({self.error})'
        return f'{what}, first in {self.first},' if self.first else what


def _unwrap(model: Any) -> BaseModel:
    return model.module if is_model_wrapper(model) else model


def _with_check(parse_losses: Callable) -> Callable:
    """Return mmengine's ``parse_losses`` that raises _LossError."""

    def checked(outputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        total, parsed = parse_losses(outputs)
        if not torch.as_tensor(total).isfinite():
            raise _LossError({k: v.item() for k, v in parsed.items() if 'loss' in k})
        return total, parsed

    return checked


def _examine(error: Exception, model: Any, step: Callable[[], Any]) -> _Findings | None:
    """Return what is NaN or infinite after a failure, None if nothing is known to be.

    ``model`` has no wrapper, and ``step`` computes the training step again.
    """
    losses = error.losses if isinstance(error, _LossError) else {}
    try:
        weights = bad_weights(model)
        # Other processes do not take part in the communication of a second step.
        first = first_bad_module(model, step) if get_world_size() == 1 else ''
        first = first or ('' if losses else first_bad_variable(error))
    except RuntimeError:  # a GPU that has failed
        weights, first = [], ''
    costs = any(text in str(error) for text in MATCHER_ERRORS)
    if not (losses or weights or first or costs):
        return None
    return _Findings(losses, weights, first, format_error(error))


def _files(batch: Any) -> Iterator[str]:
    """Yield the image files of a batch of mmdet, mmseg or mmpretrain."""
    for sample in batch.get('data_samples', ()) if isinstance(batch, dict) else ():
        if hasattr(sample, 'img_path'):
            yield str(sample.img_path)
