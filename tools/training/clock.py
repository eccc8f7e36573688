"""The clock of a training."""

import time
from collections.abc import Callable

import torch
from mmengine.device import get_device


def training_clock() -> Callable[[], float]:
    """Return a function that returns seconds.

    With one thread of a CPU these are CPU time, which other work on the machine
    lengthens less than the wall time, and which is the wall time on an idle core.
    """
    if get_device() == 'cpu' and torch.get_num_threads() == 1:
        return time.process_time
    return time.perf_counter
