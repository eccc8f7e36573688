"""How many cores are free, how the training runs share them, and how long they take."""

import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from _processes import available_cores

STATISTICS = Path('/proc/stat')
QUOTA = Path('/sys/fs/cgroup/cpu.max')  # of a container
MAX_THREADS = 4  # more do not make models this small faster
# The speed of a training is its threads to the power of this: two are 1.4 times as
# fast as one (0.29 and 0.21 s for an iteration of the classifier).
SCALING = 0.46


def free_cores(seconds: float = 1.0) -> int:
    """Return how many cores this process may use that others leave free, at least 1.

    Args:
        seconds: Time of the measurement.

    Returns:
        The number of cores.
    """
    before = _read(STATISTICS)
    time.sleep(seconds)
    allowed = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else ()
    free = available_cores() - busy_cores(before, _read(STATISTICS), allowed)
    return max(1, round(min(free, core_quota(_read(QUOTA)))))


def busy_cores(before: str, after: str, cores: Iterable[int]) -> float:
    """Return how many of these cores were busy between two texts of /proc/stat."""
    start, end = _times(before), _times(after)
    busy = 0.0
    for core in start.keys() & end.keys() & set(cores):
        idle, total = (b - a for a, b in zip(start[core], end[core], strict=True))
        busy += 1 - idle / total if total > 0 else 0
    return busy


def core_quota(text: str) -> float:
    """Return the cores that a text of cgroup's cpu.max grants, infinity if all."""
    found = re.match(r'(\d+) (\d+)', text)
    return int(found[1]) / int(found[2]) if found else math.inf


def threads_of_each(cores: int, num_runs: int) -> int:
    """Return the threads of each of the training runs that run side by side."""
    return min(max(cores // num_runs, 1), MAX_THREADS)


def relative_speed(cores: int, num_runs: int) -> float:
    """Return the speed of each training, relative to one on one core."""
    waiting = min(cores / num_runs, 1)
    return threads_of_each(cores, num_runs) ** SCALING * waiting


def remaining_seconds(
    work: Mapping[str, float], parents: Mapping[str, str], cores: int
) -> float:
    """Return how long training runs take that run side by side, each after its parent.

    Args:
        work: Seconds of each training that is left, on one core.
        parents: The training that has to end first, by name; '' for none.
        cores: Free cores.

    Returns:
        Seconds until all have ended.
    """
    left = {name: seconds for name, seconds in work.items() if seconds > 0}
    total = 0.0
    while left:
        running = [name for name in left if parents[name] not in left]
        speed = relative_speed(cores, len(running))
        step = min(left[name] for name in running)
        total += step / speed
        for name in running:
            left[name] -= step
        left = {name: seconds for name, seconds in left.items() if seconds > 0}
    return total


def _times(statistics: str) -> dict[int, tuple[int, int]]:
    """Return the ticks of each core: idle or waiting for a disk, and all."""
    times = {}
    for line in statistics.splitlines():
        if found := re.match(r'cpu(\d+) (.+)', line):
            # user nice system idle iowait irq softirq steal; guests are in user
            ticks = [int(tick) for tick in found[2].split()][:8]
            times[int(found[1])] = (sum(ticks[3:5]), sum(ticks))
    return times


def _read(path: Path) -> str:
    """Return a file of the kernel, '' if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ''
