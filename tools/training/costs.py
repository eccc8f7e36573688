"""Costs of a training: FLOPs, parameters, iteration time and memory."""

import contextlib
import copy
import io
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mmengine.config import Config
from mmengine.runner import Runner

from mmsparse.analysis.flops import count_macs
from mmsparse.errors import UsageError, config_errors

ITERATION = 'iteration'


@dataclass(frozen=True)
class Cost:
    """Cost of a model.

    Args:
        macs: MACs of the model for one validation image.
        iteration_seconds: Median time of a training iteration, measured in turns with
            the other models by `training_clock`: CPU time where it has one thread.
        peak_bytes: Peak memory of a training iteration, without weights.
        parameters: Number of parameters.
    """

    macs: int
    iteration_seconds: float
    peak_bytes: int
    parameters: int


def build_quietly(cfg: Config, label: str) -> Runner:
    """Build the runner of a training without output; its model is not initialized.

    Args:
        cfg: Config, which is changed.
        label: What is built, for an error.

    Returns:
        The runner, which cannot write logs or checkpoints.

    Raises:
        UsageError: The model cannot be built.
    """
    with (
        TemporaryDirectory() as work_dir,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        cfg.work_dir = work_dir
        # Runners of one name share a visualizer, and its folder, which is removed.
        cfg.experiment_name = Path(work_dir).name
        cfg.visualizer = None  # mmdet's has one name for all
        try:
            with config_errors():
                runner = Runner.from_cfg(cfg)
        except UsageError as error:
            raise UsageError(f'{label}: {error}') from error
    return runner


def model_macs(runner: Runner) -> int:
    """Return the MACs of the model for the first validation image."""
    item = Runner.build_dataloader(runner._test_dataloader).dataset[0]
    batch = {key: [value] for key, value in item.items()}
    # torch's counter hooks into gradients, and fails if a parameter is the query.
    model = copy.deepcopy(runner.model).eval().requires_grad_(False)
    return count_macs(lambda: model.test_step(batch))
