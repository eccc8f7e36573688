"""The tasks of the quickstart, and which of them are trained already."""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from digits.dataset import VERSION as DIGITS
from mmengine.config import Config
from training.runner import Trained

from mmsparse import __version__
from mmsparse.apis.config import read_file
from mmsparse.checkpoint.files import open_whole
from mmsparse.errors import UsageError
from mmsparse.models.backbones import BACKBONES

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
RESULT, SETTINGS = 'result.json', 'settings.json'
PREDICTIONS, LOG = 'predictions.json', 'train.log'
# Files that a training writes into its folder; no other file is ever removed.
WRITTEN = re.compile(
    r'(epoch|iter)_\d+\.pth|last_checkpoint|train\.log|curve\.jsonl|predictions\.json'
    r'|result\.json|settings\.json|attention_\w+\.webp|nan_report\.json'
)


@dataclass(frozen=True)
class Task:
    """A task.

    Args:
        config: Pattern of its config, with a place for the model's backbone.
        parent: Task whose backbone initializes this one, as ImageNet weights do for
            larger models; '' for none.
        images: Its training images in data/digits.
        cost: CPU time of an iteration on one thread, relative to one of the
            classifier; measured with BiFormer (0.22, 0.39 and 0.28 s).
    """

    config: str
    parent: str
    images: str
    cost: float


TASKS = {
    'classification': Task('{}_*_digits.py', '', 'classification/train/*/*.jpg', 1.0),
    'segmentation': Task(
        'fpn_{}_*_digits.py',
        'classification',
        'segmentation/images/training/*.jpg',
        1.8,
    ),
    'detection': Task(
        'atss_{}_*_digits.py',
        'classification',
        'detection/train/*.jpg',
        1.4,
    ),
}
# Models by the family of their backbone.
MODELS = {family: f'{family}-nano' for family in BACKBONES} | dict(
    biformer='biformer-pico'
)


@dataclass(frozen=True)
class Result(Trained):
    """Result of a task.

    Args:
        task: Name of the task.
        config: Path of the config in the repository.
    """

    task: str
    config: str


@dataclass(frozen=True)
class Job:
    """A training of a task.

    Args:
        task: Name of the task.
        config: Config file.
        folder: Folder for checkpoints, log and results.
        root: Working directory, in which data/digits is.
        seed: Seed of the model's initialization and of the order of the data.
        options: Settings that differ from the config, by dotted key.
        iterations: Number of iterations.
        fingerprint: Hash of all that the result depends on.
    """

    task: str
    config: Path
    folder: Path
    root: Path
    seed: int
    options: Mapping[str, Any] = field(compare=False)
    iterations: int
    fingerprint: str

    @property
    def parent(self) -> str:
        """The task whose backbone initializes this one."""
        return TASKS[self.task].parent

    @property
    def work(self) -> float:
        """Work of the training, in iterations of the classifier."""
        return self.iterations * TASKS[self.task].cost

    def read_result(self) -> dict[str, Any] | None:
        """Return the content of the result file, None if the task is not finished."""
        content = read_json(self.folder / RESULT)
        if content.get('fingerprint') != self.fingerprint:
            return None
        checkpoint = self.root / content['result']['checkpoint']
        return content if checkpoint.is_file() else None

    def prepare_folder(self, restart: bool = False) -> None:
        """Create the folder; remove what a training with other settings wrote there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        written = [x for x in self.folder.iterdir() if WRITTEN.fullmatch(x.name)]
        before = read_json(self.folder / SETTINGS).get('fingerprint')
        if before == self.fingerprint and not restart:
            return
        if before is None and any(path.suffix == '.pth' for path in written):
            raise UsageError(
                f'{self.folder} has checkpoints of another command: choose another '
                '--out, or move them'
            )
        for path in written:
            path.unlink()
        write_json(self.folder / SETTINGS, dict(fingerprint=self.fingerprint))


def plan(
    family: str,
    out: Path,
    seed: int = 0,
    root: Path = ROOT,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Job]:
    """Return the training runs of a family of backbones by their tasks.

    Args:
        family: Name of the backbone.
        out: Folder for the folders of the tasks.
        seed: Random seed.
        root: Working directory, in which data/digits is.
        options: Settings of each task that differ from its config, by dotted key.

    Returns:
        The training runs, parents first.
    """
    jobs: dict[str, Job] = {}
    for task, path in find_configs(family).items():
        changes = (options or {}).get(task, {})
        cfg = read_file(str(path))
        cfg.merge_from_dict(changes)
        parent = TASKS[task].parent
        content = dict(
            config=cfg.to_dict(),
            seed=seed,
            parent=jobs[parent].fingerprint if parent else '',
            versions=(__version__, DIGITS),
        )
        images = sum(1 for _ in (root / 'data/digits').glob(TASKS[task].images))
        jobs[task] = Job(
            task=task,
            config=path,
            folder=out.resolve() / task,
            root=root,
            seed=seed,
            options=changes,
            iterations=count_iterations(cfg, images),
            fingerprint=fingerprint(content),
        )
    return jobs


def find_configs(family: str) -> dict[str, Path]:
    """Return the config of every task."""
    return {
        name: next(CONFIGS.glob(f'*/{task.config.format(MODELS[family])}'))
        for name, task in TASKS.items()
    }


def count_iterations(cfg: Config, images: int) -> int:
    """Return the iterations of a training by epochs or by iterations."""
    if 'max_iters' in cfg.train_cfg:
        return cfg.train_cfg.max_iters
    loader = cfg.train_dataloader
    images = min(images, loader.dataset.get('indices', images))
    return cfg.train_cfg.max_epochs * math.ceil(images / loader.batch_size)


def fingerprint(content: Any) -> str:
    """Return a hash of plain data, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file, an empty one if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file completely or not at all."""
    with open_whole(path) as file:
        file.write(json.dumps(content).encode())


def write_result(job: Job, result: Result, tables: dict[str, Any]) -> None:
    """Record that a task is finished."""
    content = dict(fingerprint=job.fingerprint, result=asdict(result), tables=tables)
    write_json(job.folder / RESULT, content)


def shorten(path: Path) -> str:
    """Return a path as seen from the working directory, if it is below it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
