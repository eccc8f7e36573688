"""Measure candidates in turns, so that a drifting machine does not favor one."""

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

FORWARD, TRAINING = 'forward', 'forward + backward'
MATMUL_SIDE = 2048

Log = Callable[[str], None]


class Stopwatch:
    """Time the parts of one run, on a GPU with synchronization.

    Args:
        device: Device of the run.
        clock: Returns seconds; by default ``perf_counter``.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] | None = None
    ) -> None:
        self.device = device
        self.clock = clock or perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the time of the context to a part; parts may be nested.

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
        return self.clock()


@dataclass(frozen=True)
class Candidate:
    """One of the alternatives that are compared.

    Args:
        name: Its name in the table.
        run: Runs it and times its parts, the same for all candidates.
        macs: MACs of a forward pass, if they are known.
        in_torch: Whether torch allocates its memory, which can be measured then.
    """

    name: str
    run: Callable[[Stopwatch], Any]
    macs: int | None = None
    in_torch: bool = True


@dataclass(frozen=True)
class Measurement:
    """Time and memory of a candidate.

    Args:
        name: Name of the candidate.
        seconds: Seconds of every part, one per round.
        peak_bytes: Peak memory of a run; None if it was not measured.
        macs: MACs of a forward pass, if they are known.
    """

    name: str
    seconds: dict[str, list[float]]
    peak_bytes: int | None
    macs: int | None = None

    def median_seconds(self, part: str) -> float:
        """Return the median over the rounds."""
        return median(self.seconds[part])

    def ratio(self, part: str, baseline: 'Measurement') -> float:
        """Return the median ratio to a baseline over the rounds; 0.5 is half the time.

        Args:
            part: Name of the part.
            baseline: Measured in the same rounds.

        Returns:
            The ratio.
        """
        rounds = zip(self.seconds[part], baseline.seconds[part], strict=True)
        return median(own / other for own, other in rounds)


def measure(
    candidates: Sequence[Candidate],
    repeats: int,
    device: torch.device,
    log: Log = lambda line: None,
    clock: Callable[[], float] | None = None,
) -> list[Measurement]:
    """Run candidates in turns.

    The first run of each is a warm-up that measures memory. Every second round has the
    reverse order, so that no candidate always follows the same one.

    Args:
        candidates: Alternatives with different names.
        repeats: Number of timed rounds, at least 1.
        device: Device of the runs.
        log: Called before every run with a description of it.
        clock: Returns seconds; by default ``perf_counter``.

    Returns:
        One measurement per candidate, in their order.

    Raises:
        ValueError: ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1; got {repeats}.')
    peaks: dict[str, int | None] = {}
    for candidate in candidates:
        log(f'warm-up and memory: {candidate.name}')
        run = partial(candidate.run, Stopwatch(device))
        peak = peak_bytes(run, device)
        peaks[candidate.name] = peak if candidate.in_torch else None
    times: dict[str, dict[str, list[float]]] = {
        candidate.name: defaultdict(list) for candidate in candidates
    }
    for i in range(repeats):
        for candidate in candidates[:: -1 if i % 2 else 1]:
            log(f'round {i + 1} of {repeats}: {candidate.name}')
            watch = Stopwatch(device, clock)
            candidate.run(watch)
            for part, seconds in watch.seconds.items():
                times[candidate.name][part].append(seconds)
    return [
        Measurement(x.name, times[x.name], peaks[x.name], x.macs) for x in candidates
    ]


def matmul_throughput(device: torch.device, rounds: int = 5) -> float:
    """Measure MACs per second of large matrix products in float32, the median."""
    a, b = torch.rand(2, MATMUL_SIDE, MATMUL_SIDE, device=device)
    a @ b
    seconds = []
    for _ in range(rounds):
        watch = Stopwatch(device)
        with watch.time('matmul'):
            a @ b
        seconds.append(watch.seconds['matmul'])
    return MATMUL_SIDE**3 / median(seconds)
