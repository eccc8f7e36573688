"""A training that ends where its loss is no number, and says why."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from mmsparse.engine.checkpoints import last_whole_checkpoint
from mmsparse.errors import UsageError
from mmsparse.registry import HOOKS

REPORT = 'nan_report.json'


class NotFiniteError(RuntimeError):
    """A loss is infinite or no number."""


@HOOKS.register_module()
class StopAtNaN(Hook):
    """End a training whose loss is infinite or no number, before it is saved.

    Into the work directory goes ``nan_report.json``: the iteration, the losses, the
    files of the batch and the last whole checkpoint.
    """

    priority = 'HIGH'

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Look at the losses.

        Args:
            runner: Knows iteration and work directory.
            batch_idx: Not used.
            data_batch: Its data samples know their files.
            outputs: The losses by name.

        Raises:
            NotFiniteError: One of them is infinite or no number.
        """
        losses = {
            name: float(value)
            for name, value in (outputs or {}).items()
            if isinstance(value, (Tensor, float)) and 'loss' in name
        }
        if all(map(math.isfinite, losses.values())):
            return
        try:
            good = last_whole_checkpoint(runner.work_dir)
        except UsageError:
            good = None
        report = dict(
            iteration=runner.iter + 1,
            losses={name: str(value) for name, value in losses.items()},
            files=list(_files(data_batch)),
            last_checkpoint=good and str(good),
        )
        path = Path(runner.work_dir, REPORT)
        path.write_text(json.dumps(report, indent=1) + '\n')
        bad = {name: x for name, x in losses.items() if not math.isfinite(x)}
        raise NotFiniteError(
            f'In iteration {report["iteration"]} the losses were {bad}. The files of '
            f'the batch stand in {path}; the last whole checkpoint is '
            f'{good or "none yet"}. Look at these files, lower the learning rate, clip '
            f'gradients (optim_wrapper.clip_grad) or train without mixed precision.'
        )


def _files(batch: Any) -> Iterable[str]:
    """The files of pictures that the samples of a host's batch name."""
    samples = batch.get('data_samples', ()) if isinstance(batch, dict) else ()
    for sample in samples:
        path = getattr(sample, 'img_path', None)
        if path is not None:
            yield str(path)
