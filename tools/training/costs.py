"""Costs of a training: FLOPs, parameters, iteration time and memory."""

import contextlib
import copy
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from filelock import FileLock
from mmengine.config import Config
from mmengine.runner import Runner

from mmsparse.analysis.flops import count_macs
from mmsparse.errors import UsageError, config_errors
from training.files import write_json

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


def read_costs(
    file: Path, names: Iterable[str], measure: Callable[[list[str]], dict[str, Cost]]
) -> dict[str, Cost]:
    """Return the costs of models from a file, which is completed first.

    They are measured once. Another process that shares the file waits meanwhile.

    Args:
        file: JSON file, whose folder is created.
        names: Names of the models.
        measure: Returns the cost of each model by its name.

    Returns:
        The cost of each model by its name.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{file}.lock'):
        known = json.loads(file.read_text()) if file.is_file() else {}
        if missing := [name for name in names if name not in known]:
            known |= {name: asdict(cost) for name, cost in measure(missing).items()}
            write_json(file, known)
    return {name: Cost(**known[name]) for name in names}


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
