"""Measuring alternatives in turns, so that a drifting machine does not decide."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmark.memory import peak_bytes

Report = Callable[[str], None]


class Stopwatch:
    """Times the parts of one run; on a GPU it waits for what was started there.

    Args:
        device: Where the run computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time of what runs within to a part; parts may lie in each other.

        Args:
            part: Name of the part.

        Yields:
            Nothing.
        """
        start = self._now()
        yield
        self.seconds[part] += self._now() - start

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return perf_counter()


@dataclass(frozen=True)
class Candidate:
    """One of the alternatives.

    Args:
        name: Its name in the table.
        run: What is measured; it has the stopwatch time the parts to be compared,
            which are the same for all candidates.
    """

    name: str
    run: Callable[[Stopwatch], Any]


@dataclass(frozen=True)
class Measurement:
    """What a candidate took.

    Args:
        name: That of the candidate.
        seconds: Times of every part, one a round.
        peak_bytes: Memory at most in use by what a run allocates.
    """

    name: str
    seconds: dict[str, list[float]]
    peak_bytes: int

    def median_seconds(self, part: str) -> float:
        """Take the median of the rounds.

        Args:
            part: Name of the part.

        Returns:
            Seconds.
        """
        return median(self.seconds[part])

    def ratio(self, part: str, baseline: 'Measurement') -> float:
        """Compare with another candidate, round by round.

        Args:
            part: Name of the part.
            baseline: Measured in the same rounds.

        Returns:
            Median of the quotients of the rounds, 0.5 for twice as fast.
        """
        rounds = zip(self.seconds[part], baseline.seconds[part], strict=True)
        return median(own / other for own, other in rounds)


def measure(
    candidates: Sequence[Candidate],
    repeats: int,
    device: torch.device,
    report: Report = lambda line: None,
) -> list[Measurement]:
    """Run candidates in turns.

    The first run of each warms up and tells its memory. Every other round goes through
    the candidates backwards, so that none always follows the same.

    Args:
        candidates: What to compare; with different names.
        repeats: Number of rounds that are timed, at least 1.
        device: Where they compute.
        report: Told before every run what is about to be run.

    Returns:
        One measurement a candidate, in their order.

    Raises:
        ValueError: ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1; got {repeats}.')
    peaks: dict[str, int] = {}
    for candidate in candidates:
        report(f'warm-up and memory: {candidate.name}')
        run = partial(candidate.run, Stopwatch(device))
        peaks[candidate.name] = peak_bytes(run, device)
    times: dict[str, dict[str, list[float]]] = {
        candidate.name: defaultdict(list) for candidate in candidates
    }
    for i in range(repeats):
        for candidate in candidates[:: -1 if i % 2 else 1]:
            report(f'round {i + 1} of {repeats}: {candidate.name}')
            watch = Stopwatch(device)
            candidate.run(watch)
            for part, seconds in watch.seconds.items():
                times[candidate.name][part].append(seconds)
    return [Measurement(x.name, times[x.name], peaks[x.name]) for x in candidates]
