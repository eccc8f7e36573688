"""Trainings of small models, each in a process of its own, with a bar for a log."""

import contextlib
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.utils import digit_version
from torch import nn
from tqdm import tqdm

from mmsparse.checkpoint.state_dict import (
    read_weights,
    shapes_of,
    state_dict_mismatch,
)
from mmsparse.conversion.families import BACKBONE
from mmsparse.errors import UsageError

# glibc's malloc gives large blocks back to the system and asks for them again in every
# iteration; keeping them makes these trainings a tenth faster.
KEEP_MEMORY = dict(MALLOC_MMAP_THRESHOLD_=str(2**32), MALLOC_TRIM_THRESHOLD_=str(2**33))


@dataclass(frozen=True)
class Metric:
    """What a host's models are judged by.

    Args:
        key: What the host calls it.
        name: What people call it.
        scale: What turns the host's value into percent.
    """

    key: str
    name: str
    scale: float = 1.0


METRICS = {
    'mmpretrain': Metric('accuracy/top1', 'accuracy'),
    'mmseg': Metric('mIoU', 'mIoU'),
    'mmdet': Metric('coco/bbox_mAP', 'box AP', scale=100.0),
}


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Args:
        metric: Name of the metric, in percent, on the validation data.
        value: Its value after the last epoch.
        train_seconds: Wall time of the training with its evaluations.
        parameters: Number of parameters of the model.
        checkpoint: The last checkpoint.
    """

    metric: str
    value: float
    train_seconds: float
    parameters: int
    checkpoint: str


def in_new_process(function: Callable, *args: Any) -> Any:
    """Call a function in a fresh process: every host wants the scope for itself.

    Args:
        function: What is called, of a module that can be imported.
        *args: Its arguments.

    Returns:
        What it returns.
    """
    os.environ.update(KEEP_MEMORY)  # read by a process when it starts
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def check_folder(out: Path) -> None:
    """Find out before a training that its results have no place.

    Args:
        out: Folder for them, which need not exist.

    Raises:
        UsageError: It is a file, or below one.
    """
    for path in (out, *out.parents):
        if path.is_file():
            raise UsageError(f'--out must be a folder; {path} is a file')


def start_from(cfg: Config, checkpoint: str) -> None:
    """Let a model's backbone start from that of another.

    Args:
        cfg: The configuration, which is changed.
        checkpoint: File of the other model.
    """
    cfg.model.backbone.init_cfg = dict(
        type='Pretrained', checkpoint=checkpoint, prefix=BACKBONE
    )


def check_start(backbone: nn.Module, checkpoint: str) -> None:
    """Raise UsageError unless a backbone can start from that of another model.

    mmengine only logs missing parameters.

    Args:
        backbone: The backbone.
        checkpoint: File of the other model.

    Raises:
        UsageError: The file lacks parameters of the backbone, other than norms of
            outputs, which each model has for its own; or has them in another size.
    """
    shapes = {
        key: shape
        for key, shape in shapes_of(dict(backbone.named_parameters())).items()
        if not key.startswith('out_norms.')
    }
    weights = {
        key: tensor
        for name, tensor in read_weights(checkpoint).items()
        if (key := name.removeprefix(BACKBONE)) in shapes and name != key
    }
    if mismatch := state_dict_mismatch(weights, shapes):
        raise UsageError(
            f'{checkpoint} has no backbone that fits {type(backbone).__name__}; '
            f'{mismatch}'
        )


def train(
    cfg: Config, work_dir: Path, label: str, resume: bool = False
) -> tuple[Runner, Trained]:
    """Train a model and evaluate it, with its log in a file of the work directory.

    Args:
        cfg: The configuration, of a host that is registered.
        work_dir: Where log and checkpoints go.
        label: What stands before the bar.
        resume: Go on from the last checkpoint there, if there is one.

    Returns:
        The runner after the evaluation, and the result.
    """
    warnings.simplefilter('ignore')
    work_dir.mkdir(parents=True, exist_ok=True)
    cfg.work_dir, cfg.resume = str(work_dir), resume
    # One pass over all weights; older torch has it for GPUs alone.
    fused = digit_version(torch.__version__) >= digit_version('2.4')
    cfg.optim_wrapper.optimizer.fused = fused
    metric = METRICS[cfg.default_scope]
    with (
        (work_dir / 'train.log').open('a' if resume else 'w') as log,
        contextlib.redirect_stdout(log),
    ):
        runner = Runner.from_cfg(cfg)
        runner.register_hook(ProgressHook(label), priority='LOWEST')
        start = time.perf_counter()
        runner.train()
        seconds = time.perf_counter() - start
        value = runner.test()[metric.key] * metric.scale
    return runner, Trained(
        metric=metric.name,
        value=round(float(value), 2),
        train_seconds=round(seconds, 1),
        parameters=sum(parameter.numel() for parameter in runner.model.parameters()),
        checkpoint=(work_dir / 'last_checkpoint').read_text().strip(),
    )


class ProgressHook(Hook):
    """A bar on the screen in place of the log, which goes to a file.

    Args:
        label: What stands before it.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    def before_train(self, runner: Runner) -> None:
        """Show the bar."""
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
        """Move the bar on."""
        self.bar.update()
        self.bar.set_postfix(loss=f'{float(outputs["loss"]):.2f}', refresh=False)

    def after_train(self, runner: Runner) -> None:
        """Take the bar away."""
        self.bar.close()
