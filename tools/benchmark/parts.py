"""Time the parts of a model while it runs."""

from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmark.timing import Stopwatch
from mmsparse.analysis.flops import inside_parts, named_parts


def time_parts(
    model: nn.Module,
    run: Callable[[], Any],
    repeats: int,
    device: torch.device,
    blocks: bool = False,
) -> dict[str, float]:
    """Time every part of a model.

    Args:
        model: A backbone, or a model of mmdet, mmseg or mmpretrain.
        run: Runs it once.
        repeats: Number of timed runs, after one that is not timed.
        device: Device of the model.
        blocks: Whether to time the blocks of every stage of the backbone.

    Returns:
        Name of a part to the median of its seconds, without parts that do not run;
        and the ``total``.

    Raises:
        ValueError: ``repeats`` is less than 1.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1; got {repeats}.')
    run()
    parts = dict(named_parts(model, blocks))
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats):
        watch = Stopwatch(device)
        with inside_parts(parts, watch.time), watch.time('total'):
            run()
        for name, seconds in watch.seconds.items():
            times[name].append(seconds)
    return {name: median(seconds) for name, seconds in times.items()}
