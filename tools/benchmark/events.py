"""Time short runs in turns, on a GPU by its events."""

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmark.memory import peak_bytes

Run = Callable[[], Any]

SECONDS = 0.15  # of the rounds per run
WARM_UP = 3  # calls, which also compile and tune kernels
MIN_ROUNDS, MAX_ROUNDS = 3, 50
REPEAT_SECONDS = 2  # of a TimeoutError
# Written before every run: it empties the L2 cache and takes about as long as Python
# needs to launch the kernels of the run.
FLUSHED_BYTES = 2**30
# Columns of what is measured.
FORWARD, TRAINING = 'forward, ms', 'forward + backward, ms'
MEMORY = 'peak, MiB'


class Passes(NamedTuple):
    """Forward pass, which runs without gradients, and forward with backward pass."""

    forward: Run
    training: Run


def time_passes(
    candidates: Mapping[str, Passes], device: torch.device, seconds: float = SECONDS
) -> dict[str, dict[str, Any]]:
    """Measure time and memory of alternatives.

    Args:
        candidates: Alternatives by name.
        device: Device of the runs.
        seconds: See :func:`time_in_turns`.

    Returns:
        Columns of each; of one that fails, its ``error``.
    """
    with torch.no_grad():
        forward = time_in_turns(
            {name: passes.forward for name, passes in candidates.items()},
            device,
            seconds,
        )
    training = time_in_turns(
        {name: passes.training for name, passes in candidates.items()}, device, seconds
    )
    found: dict[str, dict[str, Any]] = {}
    for name, passes in candidates.items():
        times = {FORWARD: forward[name], TRAINING: training[name]}
        errors = [x for x in times.values() if isinstance(x, Exception)]
        if errors:
            found[name] = {'error': describe(errors[0])}
        else:
            found[name] = times | {MEMORY: peak_bytes(passes.training, device) / 2**20}
    return found


def describe(error: BaseException) -> str:
    """Return type and first line of an error."""
    lines = str(error).splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'[:200]


def time_in_turns(
    runs: Mapping[str, Run], device: torch.device, seconds: float = SECONDS
) -> dict[str, float | Exception]:
    """Time runs in rounds, each of which has a call of every run.

    Args:
        runs: Functions by name.
        device: Device of the runs.
        seconds: Time of the rounds per run; there are at least ``MIN_ROUNDS``, or one
            if the runs are so slow that these would take four times as long.

    Returns:
        Median milliseconds of every run, or the error of its first call.
    """
    results: dict[str, float | Exception] = {}
    working = {}
    for name, run in runs.items():
        try:
            for _ in range(WARM_UP if device.type == 'cuda' else 1):
                run()
            synchronize(device)
            working[name] = run
        except TimeoutError:
            raise
        except Exception as error:  # noqa: BLE001 - reported by the caller
            results[name] = error.with_traceback(None)  # which would keep tensors
            synchronize(device)  # raises again if the device is not usable any more
    times: dict[str, list[float]] = {name: [] for name in working}
    start, seconds = perf_counter(), seconds * len(working)
    for count in range(1, MAX_ROUNDS + 1):
        for name, milliseconds in _time_round(working, device).items():
            times[name].append(milliseconds)
        elapsed = perf_counter() - start
        if elapsed > (seconds if count >= MIN_ROUNDS else 4 * seconds):
            break
    medians = {name: median(rounds) for name, rounds in times.items()}
    return {name: (results | medians)[name] for name in runs}


def _time_round(runs: Mapping[str, Run], device: torch.device) -> dict[str, float]:
    if device.type != 'cuda':
        return {name: 1e3 * wall_seconds(run, device) for name, run in runs.items()}
    flushed, events = _flushed(device), {}
    for name, run in runs.items():
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        events[name] = start, end
    synchronize(device)
    return {name: start.elapsed_time(end) for name, (start, end) in events.items()}


@cache
def _flushed(device: torch.device) -> Tensor:
    total = torch.cuda.get_device_properties(device).total_memory
    size = min(FLUSHED_BYTES, total // 16)
    return torch.empty(size, dtype=torch.uint8, device=device)


def wall_seconds(run: Run, device: torch.device) -> float:
    """Return the time of a call until its result is there."""
    synchronize(device)
    start = perf_counter()
    run()
    synchronize(device)
    return perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def capture(run: Run) -> Run:
    """Capture a run in a CUDA graph; return the function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the context after some seconds.

    Again after ``REPEAT_SECONDS``, in case that the code inside handles exceptions. For
    the main thread; contexts may not be nested. Windows has no limit.

    Args:
        seconds: The limit.

    Yields:
        Nothing.

    Raises:
        TimeoutError: It took longer.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError(f'more than {seconds:.0f} s')

    if not hasattr(signal, 'SIGALRM'):
        yield
        return
    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), REPEAT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
