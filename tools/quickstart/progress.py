"""Show the progress of all training runs together, and how long they still take."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from quickstart.schedule import relative_speed, remaining_seconds
from quickstart.tasks import TASKS, Job

MEASUREMENT = 6.0  # seconds of training before the first estimate
INTERVAL = 20.0  # seconds between two lines of a log
SMOOTHING = 0.05  # weight of the last message in the time of an iteration


@dataclass
class State:
    """State of a training.

    Args:
        job: The training.
        done: Iterations.
        running: Whether its process sends messages.
        loss: The last loss, as text.
        value: The last value of the metric, as text.
        unit: Seconds on one core of as much work as an iteration of the
            classifier.
    """

    job: Job
    done: int = 0
    running: bool = False
    loss: str = ''
    value: str = ''
    unit: float | None = None

    @property
    def left(self) -> float:
        """The work that is left, in iterations of the classifier."""
        return (self.job.iterations - self.done) * TASKS[self.job.task].cost

    def __str__(self) -> str:
        figure = self.value or self.loss or 'starting'
        return f'{self.job.task} {self.done / self.job.iterations:.0%}, {figure}'


class Progress:
    """The progress of all training runs.

    Args:
        jobs: The training runs by their tasks.
        cores: Cores that they share.
    """

    def __init__(self, jobs: Mapping[str, Job], cores: int) -> None:
        self.cores = cores
        self.states = {task: State(job) for task, job in jobs.items()}
        for state in self.states.values():
            if state.job.read_result():
                state.done = state.job.iterations
        self.unit: float | None = None  # of the last message
        self.measured = 0.0  # seconds

    def add(self, task: str, message: dict[str, Any]) -> None:
        """Add a message of a training; an empty one is its end."""
        state = self.states[task]
        state.running = bool(message)
        if not message:
            state.done = state.job.iterations
        if 'value' in message:
            state.value = f'{message["metric"]} {message["value"]:.1f}'
        if 'loss' in message:
            state.loss = f'loss {message["loss"]:.2f}'
        if 'seconds' in message:
            running = sum(state.running for state in self.states.values())
            speed = relative_speed(self.cores, running)
            unit = message['seconds'] * speed / TASKS[task].cost
            before = unit if state.unit is None else state.unit
            self.unit = state.unit = before + SMOOTHING * (unit - before)
            self.measured += message['seconds'] * (message['iteration'] - state.done)
        state.done = message.get('iteration', state.done)

    @property
    def fraction(self) -> float:
        """The part of all work that is done, 0 to 1."""
        left = sum(state.left for state in self.states.values())
        return 1 - left / sum(state.job.work for state in self.states.values())

    @property
    def seconds_left(self) -> float | None:
        """Seconds until all runs have ended, None if too little is measured."""
        if self.measured < MEASUREMENT:
            return None
        work = {
            task: state.left * (self.unit if state.unit is None else state.unit)
            for task, state in self.states.items()
        }
        parents = {task: state.job.parent for task, state in self.states.items()}
        return remaining_seconds(work, parents, self.cores)

    def __str__(self) -> str:
        seconds = self.seconds_left
        left = '' if seconds is None else f'{format_minutes(seconds)} left'
        running = [str(state) for state in self.states.values() if state.running]
        return '; '.join(filter(None, [left, *running]))


class Display:
    """Show progress as a bar on a terminal, or as a line from time to time in a log.

    Args:
        progress: The progress of all training runs.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar = None
        if sys.stderr.isatty():
            form = '{percentage:3.0f} % |{bar:20}| {desc}'
            self.bar = tqdm(total=1.0, bar_format=form, dynamic_ncols=True)
        self.shown_at = time.monotonic()

    def update(self) -> None:
        """Show the progress."""
        if self.bar is not None:
            self.bar.n = self.progress.fraction
            self.bar.set_description_str(str(self.progress))
        elif time.monotonic() - self.shown_at > INTERVAL:
            print(f'{self.progress.fraction:4.0%}  {self.progress}', flush=True)
            self.shown_at = time.monotonic()

    def print(self, line: str) -> None:
        """Print a line, above the bar."""
        if self.bar is None:
            print(line, flush=True)
        else:
            self.bar.write(line)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()


def format_minutes(seconds: float) -> str:
    """Format a time that is not exactly known."""
    minutes = round(seconds / 60)
    return f'about {minutes} min' if minutes else 'less than a minute'
