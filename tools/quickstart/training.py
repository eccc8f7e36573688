"""Train one task in a new process: mmdet, mmseg and mmpretrain share state."""

import dataclasses
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

from _cli import filter_log

import cv2
import torch
from _processes import end_with_parent
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from training.curve import Curve
from training.metrics import METRICS, Metric
from training.runner import build_trainer, summarize
from training.start import start_from

from mmsparse.apis import load_weights, read_config
from mmsparse.engine.memory import keep_freed_memory
from quickstart import attention, predictions
from quickstart.evaluation import Evaluation
from quickstart.tasks import (
    LOG,
    PREDICTIONS,
    ROOT,
    Job,
    Result,
    shorten,
    write_json,
    write_result,
)

CHECKPOINTS = 12  # per training: less than a minute is lost when it is interrupted
EARLY = 3  # a third of the training: the time of the first predictions
PAUSE = 0.3  # seconds between two messages


def train_job(
    job: Job, pretrained: str | None, threads: Synchronized, link: Connection
) -> None:
    """Train and evaluate a model, or resume its training; write result and drawings.

    Args:
        job: The training.
        pretrained: Checkpoint whose backbone the model starts from.
        threads: Number of threads, which may change at any time.
        link: Receives messages, see `Reporter`.
    """
    end_with_parent()
    keep_freed_memory()
    os.setsid()  # Linux divides the CPU time between sessions before processes.
    redirect_output(job.folder / LOG)
    os.chdir(job.root)
    cv2.setNumThreads(0)  # for images this small, threads only cost time
    torch.set_num_threads(threads.value)
    cfg = training_config(job, pretrained)
    metric = METRICS[cfg.default_scope]
    evaluation = Evaluation()
    reporter = Reporter(job, threads, link, evaluation, metric)
    hooks = [ResumeEpoch(), evaluation, reporter]
    runner = build_trainer(cfg, job.folder, hooks, resume=True)
    filter_log(runner.logger)
    runner.train()
    if evaluation.iteration != runner.max_iters:  # interrupted after the last one
        runner.test()
    value = evaluation.value(metric)
    trained = summarize(runner, metric, value, reporter.curve.seconds)
    load_weights(runner.model, trained.checkpoint)
    image = reporter.draw(runner, runner.max_iters)[0]['path']
    model, classes = runner.model.eval(), evaluation.classes
    attention.draw(model, runner.cfg, image, classes, job.folder)
    config = job.config.relative_to(ROOT).as_posix()
    fields = dataclasses.asdict(trained) | dict(
        checkpoint=shorten(Path(trained.checkpoint)), task=job.task, config=config
    )
    result = Result(**fields)
    write_result(job, result, evaluation.tables())


def redirect_output(path: Path) -> None:
    """Append all that this process prints to a file."""
    with path.open('a') as log:
        for descriptor in (1, 2):
            os.dup2(log.fileno(), descriptor)


def training_config(job: Job, pretrained: str | None) -> Config:
    """Return the config of a training, with checkpoints in short intervals."""
    cfg = read_config(str(job.config), dict(job.options))
    cfg.randomness = dict(seed=job.seed)
    if pretrained:
        start_from(cfg, pretrained)
    interval = max(job.iterations // CHECKPOINTS, 1)
    checkpoint = dict(by_epoch=False, interval=interval, max_keep_ckpts=1)
    cfg.merge_from_dict(dict(default_hooks=dict(checkpoint=checkpoint)))
    if cfg.default_scope == 'mmdet':
        cfg.val_evaluator.classwise = cfg.test_evaluator.classwise = True
    return cfg


class ResumeEpoch(Hook):
    """Resume a training by epochs within an epoch: its first batches are only loaded.

    Loading them draws the random numbers of the data, so that the batches after them
    are those of an uninterrupted training.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Skip the batches that the model has been trained with."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            done = runner.iter - runner.epoch * len(loop.dataloader)
            run = type(loop).run_iter
            loop.run_iter = lambda i, batch: i < done or run(loop, i, batch)


class Reporter(Hook):
    """Report progress to the parent process, and use as many threads as it wants.

    Args:
        job: The training.
        threads: Number of threads, which may change at any time.
        link: Receives messages.
        evaluation: Has the metrics when this hook runs after a validation.
        metric: The main metric.
    """

    priority = 'LOWEST'

    def __init__(
        self,
        job: Job,
        threads: Synchronized,
        link: Connection,
        evaluation: Evaluation,
        metric: Metric,
    ) -> None:
        self.job, self.threads, self.link = job, threads, link
        self.evaluation, self.metric = evaluation, metric
        self.curve = Curve(job.folder)

    def before_train(self, runner: Runner) -> None:
        """Report the first iteration."""
        self.curve.start(runner.iter, runner.max_iters)
        self.sent_at, self.sent_iteration = None, runner.iter
        self.link.send(dict(iteration=runner.iter))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Change the number of threads; the time starts after skipped batches."""
        if self.sent_at is None:
            self.sent_at = time.perf_counter()
        if torch.get_num_threads() != self.threads.value:
            torch.set_num_threads(self.threads.value)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Record the loss, report the speed, and draw once."""
        iteration, now = runner.iter + 1, time.perf_counter()
        loss = float(outputs['loss'])
        self.curve.add_loss(iteration, loss)
        if now - self.sent_at > PAUSE or iteration == runner.max_iters:
            seconds = (now - self.sent_at) / (iteration - self.sent_iteration)
            self.link.send(dict(iteration=iteration, seconds=seconds, loss=loss))
            self.sent_at, self.sent_iteration = now, iteration
        if iteration == runner.max_iters // EARLY:
            self.draw(runner, iteration)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Record and report the metric."""
        value = self.evaluation.value(self.metric)
        self.curve.add_value(runner.iter, value)
        message = dict(iteration=runner.iter, metric=self.metric.name, value=value)
        self.link.send(message)

    def draw(self, runner: Runner, iteration: int) -> list[dict[str, Any]]:
        """Write predictions for the report, and return those of its samples."""
        content = predictions.predict(runner, self.evaluation.mistakes)
        write_json(self.job.folder / PREDICTIONS, dict(iteration=iteration, **content))
        self.link.send(dict(iteration=iteration, drawn=True))
        return content['samples']
