"""Stop training when a loss is NaN or infinite, and write a report."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from mmsparse.engine.checkpoints import last_whole_checkpoint
from mmsparse.errors import UsageError
from mmsparse.registry import HOOKS

REPORT = 'nan_report.json'
MATCHER_ERROR = 'invalid numeric entries'  # of scipy, for costs that are NaN


class NotFiniteError(RuntimeError):
    """A loss or prediction is NaN or infinite."""


@HOOKS.register_module()
class StopAtNaN(Hook):
    """Stop training when a loss is NaN or infinite, before the weights are saved.

    ``nan_report.json`` in the work directory has the iteration, the losses, the files
    of the batch and the last undamaged checkpoint. Detectors that match predictions
    with boxes, as DETR does, stop at NaN predictions, without losses in the report.
    """

    priority = 'HIGH'

    def before_train(self, runner: Runner) -> None:
        """Also report NaN predictions, at which a matcher fails before any loss."""
        train_step = runner.model.train_step

        def checked(data: Any, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
            try:
                return train_step(data, optim_wrapper)
            except ValueError as error:
                if MATCHER_ERROR not in str(error):
                    raise
                raise _report(runner, data, {}) from error

        runner.model.train_step = checked

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Raise NotFiniteError if a loss is NaN or infinite."""
        losses = {
            name: value.item() if isinstance(value, Tensor) else value
            for name, value in (outputs or {}).items()
            if isinstance(value, (Tensor, float)) and 'loss' in name
        }
        if not all(map(math.isfinite, losses.values())):
            raise _report(runner, data_batch, losses)


def _report(runner: Runner, batch: Any, losses: dict[str, float]) -> NotFiniteError:
    """Write the report and return the error."""
    try:
        checkpoint = last_whole_checkpoint(runner.work_dir)
    except UsageError:
        checkpoint = None
    report = dict(
        iteration=runner.iter + 1,
        losses={name: str(value) for name, value in losses.items()},
        files=list(_files(batch)),
        last_checkpoint=checkpoint and str(checkpoint),
    )
    path = Path(runner.work_dir, REPORT)
    path.write_text(json.dumps(report, indent=1) + '\n')
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    return NotFiniteError(
        f'NaN or infinite {f"losses {bad}" if bad else "predictions"} in iteration '
        f'{report["iteration"]}. The files of the batch are in {path}; last undamaged '
        f'checkpoint: {checkpoint or "none"}. Inspect these files, lower the learning '
        f'rate, clip gradients (optim_wrapper.clip_grad) or train in single precision.'
    )


def _files(batch: Any) -> Iterator[str]:
    """Yield the image files of a batch of mmdet, mmseg or mmpretrain."""
    for sample in batch.get('data_samples', ()) if isinstance(batch, dict) else ():
        if hasattr(sample, 'img_path'):
            yield str(sample.img_path)
