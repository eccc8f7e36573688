"""Peak memory of a run."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.profiler import profile

# Torch's name for the event of an allocation, or of its end with a negative size.
ALLOCATION = '[memory]'


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Measure the peak memory of a run.

    Only what torch allocates within the run counts, for tensors and workspace. Weights
    and inputs from before the run do not, on a GPU as on a CPU.

    Args:
        run: Called once.
        device: Device of the run.

    Returns:
        Bytes.
    """
    if device.type != 'cuda':
        return _peak_on_cpu(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], Any]) -> int:
    """Add up the allocations; process memory would include earlier ones."""
    gc.collect()  # garbage from before would count when it is freed within the run
    with profile(profile_memory=True) as profiler:
        run()
    events = profiler.kineto_results.events()
    allocations = [event for event in events if event.name() == ALLOCATION]
    allocations.sort(key=_start)
    used = peak = 0
    for event in allocations:
        # What an earlier measurement has allocated may be freed now.
        used = max(used + event.nbytes(), 0)
        peak = max(peak, used)
    return peak


def _start(event: Any) -> float:
    # Torch before 2.4 has microseconds only; events of one keep their order.
    return event.start_ns() if hasattr(event, 'start_ns') else event.start_us()
