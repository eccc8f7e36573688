"""A job: sections of steps that run within a budget."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from benchmark.events import SECONDS, describe, synchronize, time_limit
from benchmark.gpu.results import (
    Row,
    as_text,
    read_results,
    write_csv,
    write_json,
    write_page,
)
from benchmark.report import environment, record
from benchmark.tuning import describe_device, user_files, write_tuning
from mmsparse.ops._tuning import measurements, tuning_file

BUDGET = 440  # seconds that the reserves of the sections are for
TOOL = Path(__file__).parents[2] / 'benchmark.py'


class Step(NamedTuple):
    """A part of a section that may fail without the others.

    Args:
        name: Its name.
        run: Measures, and yields rows of the section's table.
        seconds: Its own time limit; None for none.
        backend: Op and backend that it checks, if it checks one.
    """

    name: str
    run: Callable[[], Iterable[Row]]
    seconds: float | None = None
    backend: tuple[str, str] | None = None


@dataclass(frozen=True)
class Section:
    """A part of the job.

    Args:
        name: Its name.
        what: What it measures, a sentence.
        steps: Returns its steps.
        reserve: Seconds that earlier sections leave to it, of a job of ``BUDGET``.
    """

    name: str
    what: str
    steps: Callable[['Job'], Iterator[Step]]
    reserve: float


class Files(NamedTuple):
    """Files of the results."""

    json: Path
    csv: Path
    page: Path


class Job:
    """Runs sections within a budget.

    The first of its files is written after every row, the others after every section.

    Args:
        device: Device of all runs.
        smoke: Whether to take the smallest sizes.
        budget: Seconds for all sections.
        files: Files to write; that of the measured ops is in the folder of the first.
        sections: Sections in their order.
        resume: Whether to keep the results that ``files.json`` has.
    """

    def __init__(
        self,
        device: torch.device,
        smoke: bool,
        budget: float,
        files: Files,
        sections: list[Section],
        resume: bool = False,
    ) -> None:
        self.start = perf_counter()
        self.device = device
        self.smoke = smoke
        self.seconds = 0 if smoke else SECONDS  # of the rounds of a comparison, per run
        self.budget = budget
        self.sections = sections
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.files = files
        self.header = dict(
            title='A job on one GPU',
            what='Medians at the smallest sizes.' if smoke else 'Medians.',
            **record(device),
            environment=environment(device),
        )
        self.tuning = describe_device(device)
        self.tuning_path = files.json.with_name(tuning_file(self.tuning['device']))
        if not resume:
            files.json.unlink(missing_ok=True)
            self.tuning_path.unlink(missing_ok=True)
        self.results = read_results(files.json)

    def run(self) -> None:
        """Run all sections; a step that fails is recorded, and the next one follows.

        As soon as the backends of ops are measured, ``auto`` takes the fastest.
        """
        with user_files(self.tuning_path.parent):
            for section in self.sections:
                self.results.skipped.pop(section.name, None)
                try:
                    for step in section.steps(self):
                        self._run_step(section, step)
                except Exception as error:  # noqa: BLE001 - the job continues
                    self._record_error(section.name, 'preparation', error)
                self._write_all()

    def is_broken(self, backend: tuple[str, str] | None) -> bool:
        """Return whether the device was not usable any more after an op's backend."""
        return backend is not None and list(backend) in self.results.broken

    def left(self, section: Section) -> float:
        """Return the seconds that a section has, without the reserves of later ones."""
        later = self.sections[self.sections.index(section) + 1 :]
        reserved = sum(x.reserve for x in later) * min(self.budget / BUDGET, 1)
        return self.budget - reserved - self._elapsed()

    def _write_all(self) -> None:
        captions = {section.name: section.what for section in self.sections}
        self._write()
        write_csv(self.files.csv, self.results.tables.get('models', ()))
        write_page(self.files.page, self.header, self.results, captions)
        write_tuning(self.tuning_path, self.tuning, self.results.usable_rows())
        measurements.cache_clear()

    def _run_step(self, section: Section, step: Step) -> None:
        name = f'{section.name}: {step.name}'
        if name in self.results.done or self.is_broken(step.backend):
            return
        if (left := self.left(section)) <= 0:
            self.results.skipped.setdefault(section.name, []).append(step.name)
            return
        self.results.done.append(name)
        try:
            with time_limit(left if step.seconds is None else min(left, step.seconds)):
                for row in step.run():
                    self._record(section.name, row)
        except Exception as error:  # noqa: BLE001 - the job continues
            self._record_error(section.name, step.name, error)
        self._restart_if_broken(step)

    def _record(self, section: str, row: Row) -> None:
        self.results.tables.setdefault(section, []).append(row)
        cells = (f'{name} {text}' for name, text in as_text(row).items())
        self._log(f'{section}: {", ".join(cells)}')
        self._write()

    def _record_error(self, section: str, step: str, error: Exception) -> None:
        self.results.errors.setdefault(section, {})[step] = describe(error)
        self._log(f'{section}: {step}: {describe(error)}')
        self._write()

    def _write(self) -> None:
        write_json(self.files.json, self.header, self.results)

    def _log(self, line: str) -> None:
        print(f'[{self._elapsed():4.0f} s] {line}', file=sys.stderr, flush=True)

    def _elapsed(self) -> float:
        return perf_counter() - self.start

    def _restart_if_broken(self, step: Step) -> None:
        """Continue in a new process after an error that the device keeps reporting.

        An illegal memory access is one: the process cannot use the device any more.
        """
        try:
            synchronize(self.device)
        except RuntimeError:
            if step.backend is not None:
                self.results.broken.append(list(step.backend))
            self._write()
            left = f'{self.budget - self._elapsed():.0f}'
            command = [sys.executable, str(TOOL), *sys.argv[1:]]
            os.execv(sys.executable, [*command, '--resume', '--budget', left])
