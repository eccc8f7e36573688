"""The loss and the metric of a training over its iterations, in a file."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = 'curve.jsonl'
LOSSES = 150  # points of a curve


class Curve:
    """Write points with iteration, seconds of training so far, and loss or value.

    Args:
        folder: Folder of the training.
        clock: Returns seconds.
    """

    def __init__(
        self, folder: Path, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.path = folder / FILE
        self.clock = clock
        self.paused: float | None = None
        self.losses: list[float] = []

    def start(self, iteration: int, iterations: int) -> None:
        """Start or resume after an iteration; points after it are dropped."""
        points = [x for x in read_curve(self.path) if x['iteration'] <= iteration]
        self.path.write_text(''.join(json.dumps(point) + '\n' for point in points))
        self.every = max(iterations // LOSSES, 1)
        before = points[-1]['seconds'] if points else 0.0
        self.started = self.clock() - before

    def pause(self) -> None:
        """Stop the clock until `resume`."""
        self.paused = self.clock()

    def resume(self) -> None:
        """Start the clock again, if it is stopped."""
        if self.paused is not None:
            self.started += self.clock() - self.paused
            self.paused = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, with those before interruptions."""
        now = self.clock() if self.paused is None else self.paused
        return now - self.started

    def add_loss(self, iteration: int, loss: float) -> None:
        """Add the loss of an iteration; the mean of several is a point."""
        self.losses.append(loss)
        if iteration % self.every == 0:
            self._add(iteration=iteration, loss=sum(self.losses) / len(self.losses))
            self.losses.clear()

    def add_value(self, iteration: int, value: float) -> None:
        """Add the value of the metric in a validation."""
        self._add(iteration=iteration, value=value)

    def _add(self, **point: float) -> None:
        with self.path.open('a') as file:
            point = dict(point, seconds=round(self.seconds, 2))
            file.write(json.dumps(point) + '\n')


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Return the points of a curve; the last line may be incomplete."""
    points = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            points.append(json.loads(line))
        except ValueError:
            break
    return points
