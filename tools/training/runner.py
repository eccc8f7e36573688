"""Train small models, each in a new process, with a progress bar for the log."""

import contextlib
import multiprocessing
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _processes import end_with_parent
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import digit_version
from tqdm import tqdm

from mmsparse.engine.checkpoints import last_whole_checkpoint
from mmsparse.engine.memory import keep_freed_memory
from training.metrics import METRICS, Metric


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    Args:
        metric: Name of the metric on the test data.
        value: Its value at the end, in percent.
        train_seconds: Wall time of the training with its evaluations on the validation
            data.
        parameters: Number of parameters of the model.
        checkpoint: The last checkpoint.
    """

    metric: str
    value: float
    train_seconds: float
    parameters: int
    checkpoint: str


def in_new_process(function: Callable, *args: Any) -> Any:
    """Call a function in a new process: mmdet, mmseg and mmpretrain share state.

    It ends with this one: a training that outlived its killed command would
    write to the folder that the next command resumes from.
    """
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context, initializer=_prepare) as pool:
        return pool.submit(function, *args).result()


def _prepare() -> None:
    end_with_parent()
    keep_freed_memory()


def train(
    cfg: Config, work_dir: Path, label: str, resume: bool = False
) -> tuple[Runner, Trained]:
    """Train and evaluate a model.

    Args:
        cfg: Config, which is changed.
        work_dir: Folder for train.log and checkpoints.
        label: Text before the progress bar.
        resume: Whether to resume from the last checkpoint in the folder, if any.

    Returns:
        The runner after the evaluation, and the result.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    metric = METRICS[cfg.default_scope]
    with (
        (work_dir / 'train.log').open('a' if resume else 'w') as log,
        contextlib.redirect_stdout(log),
    ):
        runner = build_trainer(cfg, work_dir, [ProgressHook(label)], resume)
        start = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - start
        value = runner.test()[metric.key] * metric.scale
    return runner, summarize(runner, metric, value, seconds)


def build_trainer(
    cfg: Config, work_dir: Path, hooks: Sequence[Hook], resume: bool
) -> Runner:
    """Build the runner of a training.

    Args:
        cfg: Config, which is changed.
        work_dir: Existing folder for checkpoints.
        hooks: Hooks in addition to those of the config.
        resume: Whether to resume from the last checkpoint in the folder, if any.

    Returns:
        The runner.
    """
    warnings.simplefilter('ignore')
    cfg.work_dir, cfg.resume = str(work_dir), resume
    if resume and cfg.get('load_from'):  # mmengine would resume that training instead
        last = last_whole_checkpoint(work_dir)
        cfg.resume = last is not None
        cfg.load_from = str(last or cfg.load_from)
    fuse_optimizer(cfg)
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    return runner


def fuse_optimizer(cfg: Config) -> None:
    """Let a config have a fused optimizer: faster; older torch has it for GPUs only."""
    fused = digit_version(torch.__version__) >= digit_version('2.4')
    cfg.optim_wrapper.optimizer.fused = fused


def summarize(runner: Runner, metric: Metric, value: float, seconds: float) -> Trained:
    """Return the result of a training; the value is in percent."""
    return Trained(
        metric=metric.name,
        value=round(float(value), 2),
        train_seconds=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
        checkpoint=Path(runner.work_dir, 'last_checkpoint').read_text().strip(),
    )


class ProgressHook(Hook):
    """Show a progress bar.

    Args:
        label: Text before the bar.
    """

    priority = 'LOWEST'

    def __init__(self, label: str) -> None:
        self.label = label

    def before_train(self, runner: Runner) -> None:
        """Create the bar."""
        self.bar = tqdm(
            total=runner.max_iters, initial=runner.iter, desc=self.label, unit='it'
        )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Update the bar."""
        self.bar.update()
        self.bar.set_postfix(loss=f'{float(outputs["loss"]):.2f}', refresh=False)

    def after_train(self, runner: Runner) -> None:
        """Close the bar."""
        self.bar.close()
