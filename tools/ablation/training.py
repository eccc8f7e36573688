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
from mmsparse.engine.memory import keep_freed_memory
from mmsparse.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """The main metric of a library.

    Args:
        key: Its name in the library's results.
        name: Its name in reports.
        scale: Factor from the library's value to percent.
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
    """Call a function in a new process: mmdet, mmseg and mmpretrain share state."""
    context = multiprocessing.get_context('spawn')
    with ProcessPoolExecutor(1, context, initializer=keep_freed_memory) as pool:
        return pool.submit(function, *args).result()


def check_folder(out: Path) -> None:
    """Raise UsageError if the output folder is a file or below one."""
    for path in (out, *out.parents):
        if path.is_file():
            raise UsageError(f'--out must be a folder; {path} is a file')


def keep_settings(cfg: Config, work_dir: Path) -> None:
    """Write the config of a training; raise UsageError if its folder has another."""
    work_dir.mkdir(parents=True, exist_ok=True)
    settings = work_dir / 'config.py'
    if settings.is_file() and settings.read_text() != cfg.pretty_text:
        raise UsageError(
            f'{work_dir} has a training with other settings; remove it, or choose '
            'another --out'
        )
    settings.write_text(cfg.pretty_text)


def start_from(cfg: Config, checkpoint: str) -> None:
    """Set in a config that the backbone starts from that of a checkpoint."""
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
        UsageError: The file lacks parameters of the backbone, other than output norms,
            which depend on the model; or has them in another size.
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
