"""What the folder of a task has for the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.curve import FILE, read_curve

from quickstart.tasks import PREDICTIONS, Job, Result, read_json

ATTENTION = 'attention_'


@dataclass(frozen=True)
class Section:
    """The part of a task.

    Args:
        job: Its training.
        result: Its result, None if it is not finished.
        tables: Metrics, classes and confusions of the last validation.
        curve: Points with iteration, seconds, and loss or value.
        predictions: See `quickstart.predictions.predict`.
        attention: Drawings of what the model attends to, by name.
    """

    job: Job
    result: Result | None
    tables: Mapping[str, Any]
    curve: list[dict[str, Any]]
    predictions: Mapping[str, Any]
    attention: Mapping[str, Path]

    @property
    def example(self) -> str:
        """An image for the commands."""
        return self.predictions['samples'][0]['path']


def read_section(job: Job) -> Section:
    """Read the folder of a training, finished or not."""
    folder, finished = job.folder, job.read_result()
    return Section(
        job=job,
        result=Result(**finished['result']) if finished else None,
        tables=finished['tables'] if finished else {},
        curve=read_curve(folder / FILE),
        predictions=read_json(folder / PREDICTIONS),
        attention={
            path.stem.removeprefix(ATTENTION): path
            for path in sorted(folder.glob(f'{ATTENTION}*.webp'))
        },
    )
