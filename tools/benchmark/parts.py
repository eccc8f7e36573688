"""Time of the parts of a model, measured while it runs."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmark.timing import Stopwatch
from mmsparse.analysis.flops import named_parts


def time_parts(
    model: nn.Module, run: Callable[[], Any], repeats: int, device: torch.device
) -> dict[str, float]:
    """Time every part of a model, down to the blocks of its stages.

    Args:
        model: A backbone, or a host's model.
        run: Runs it once.
        repeats: Number of runs that are timed, at least 1, after one that is not.
        device: Where it computes.

    Returns:
        Name of a part to the median of its seconds; parts that are not called have
        none. The last is the ``total``.

    Raises:
        ValueError: ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1; got {repeats}.')
    run()
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        watch = Stopwatch(device)
        handles = [
            handle
            for name, modules in named_parts(model, blocks=True)
            for module in modules
            for handle in _time(module, name, watch)
        ]
        try:
            with watch.time('total'):
                run()
        finally:
            for handle in handles:
                handle.remove()
        for name, seconds in watch.seconds.items():
            times[name].append(seconds)
    return {name: median(seconds) for name, seconds in times.items()}


def _time(module: nn.Module, name: str, watch: Stopwatch) -> list[Any]:
    running: list[AbstractContextManager] = []

    def start(*call: Any) -> None:
        running.append(watch.time(name))
        running[-1].__enter__()

    def stop(*call: Any) -> None:
        running.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(start), module.register_forward_hook(stop)]
