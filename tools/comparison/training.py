"""Train one model of a comparison, and evaluate it on the test data meanwhile."""

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from training.clock import training_clock
from training.curve import FILE, Curve, read_curve
from training.files import write_json
from training.folder import RESULT, keep_settings
from training.metrics import METRICS, Metric
from training.runner import ProgressHook, build_trainer
from training.start import BackboneStart

from comparison.comparison import training_config
from mmsparse.errors import UsageError

OTHER_METRICS = {'mmdet': (Metric('coco/bbox_mAP_50', 'box AP50', scale=100.0),)}


@dataclass(frozen=True)
class Training:
    """A training of a model.

    Args:
        config: Config of the model.
        iterations: Length.
        seed: Random seed.
        folder: Folder for settings, log, checkpoints and result.
        threads: Number of threads.
        checkpoint: File of another model, from whose backbone this one's starts.
    """

    config: str
    iterations: int
    seed: int
    folder: Path
    threads: int
    checkpoint: str | None = None


@dataclass(frozen=True)
class Result:
    """Result of a training.

    Args:
        values: Metrics on the test data at the end, in percent; the main one first.
        seconds: Seconds of training, without evaluations.
    """

    values: dict[str, float]
    seconds: float


def train(training: Training, label: str) -> None:
    """Train and evaluate a model, or resume its training; write the result.

    Args:
        training: The training.
        label: Text before the progress bar.
    """
    torch.set_num_threads(training.threads)
    cfg = training_config(training.config, training.iterations, training.seed)
    metrics = (METRICS[cfg.default_scope], *OTHER_METRICS.get(cfg.default_scope, ()))
    history = History(training.folder, metrics[0])
    hooks = [history, ProgressHook(label)]
    if training.checkpoint:
        cfg.pretrained = training.checkpoint  # one of the settings to keep
        hooks.append(BackboneStart(training.checkpoint, label))
    keep_settings(cfg, training.folder)
    with (
        (training.folder / 'train.log').open('a') as log,
        contextlib.redirect_stdout(log),
    ):
        runner = build_trainer(cfg, training.folder, hooks, resume=True)
        runner.train()
        if history.evaluated != runner.max_iters:  # interrupted in the last evaluation
            runner.val()
    values = {metric.name: percent(metric, history.found) for metric in metrics}
    result = Result(values, round(history.curve.seconds, 1))
    write_json(training.folder / RESULT, asdict(result))


def find_start(source: Path, name: str, seed: int) -> str:
    """Return the checkpoint from whose backbone a training starts.

    Args:
        source: The checkpoint, or the folder of a protocol and budget of another
            comparison, whose training of the same name and seed must be finished.
        name: Name of the model.
        seed: Random seed of the training.

    Returns:
        The file.

    Raises:
        UsageError: There is none.
    """
    if source.is_file():
        return str(source)
    if not source.is_dir():
        raise UsageError(
            '--pretrained must be a checkpoint, or the folder of a comparison; got '
            f'{source}'
        )
    training = source / name / f'seed-{seed}'
    last = training / 'last_checkpoint'
    if (training / RESULT).is_file() and last.is_file():
        checkpoint = training / Path(last.read_text().strip()).name
        if checkpoint.is_file():
            return str(checkpoint)
    raise UsageError(
        f'--pretrained: {source} has no finished training of {name} with seed {seed}; '
        'train it first, or choose others by --rows and --seeds'
    )


def percent(metric: Metric, found: dict[str, float]) -> float:
    """Return a metric in percent, 0 without any detection: mmdet reports none then."""
    return round(metric.scale * float(found.get(metric.key, 0.0)), 2)


def read_results(folder: Path) -> dict[int, Result]:
    """Return the results of a model by seed; one that trains has none."""
    return {
        int(path.parent.name.removeprefix('seed-')): Result(**json.loads(text))
        for path in sorted(folder.glob(f'seed-*/{RESULT}'))
        if (text := path.read_text())
    }


def read_values(folder: Path) -> list[dict[str, Any]]:
    """Return the points of a training's curve that have the main metric."""
    return [point for point in read_curve(folder / FILE) if 'value' in point]


class History(Hook):
    """Record loss and metrics over the time of training, without that of evaluations.

    Args:
        folder: Folder of the training.
        metric: The main metric.
    """

    priority = 'LOWEST'

    def __init__(self, folder: Path, metric: Metric) -> None:
        self.curve, self.metric = Curve(folder, training_clock()), metric
        self.found: dict[str, float] = {}
        self.evaluated = 0

    def before_train(self, runner: Runner) -> None:
        """Prepare the curve; batches of a resumed training are skipped after this."""
        self.curve.start(runner.iter, runner.max_iters)
        self.curve.pause()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Start the clock."""
        self.curve.resume()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Record the loss."""
        self.curve.add_loss(runner.iter + 1, float(outputs['loss']))

    def before_val(self, runner: Runner) -> None:
        """Stop the clock."""
        self.curve.pause()

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Record the metrics."""
        self.found, self.evaluated = metrics, runner.iter
        self.curve.add_value(runner.iter, percent(self.metric, metrics))
