"""Memory that a long run keeps: it must not grow."""

import ctypes
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Held(NamedTuple):
    """What a process holds after some iterations.

    Args:
        iteration: Their number.
        process: Bytes of the process in memory, without what its allocator could give
            back; on a GPU those that torch has allocated there.
        tensors: Bytes of all tensors that Python can reach.
    """

    iteration: int
    process: int
    tensors: int


def follow_memory(
    step: Callable[[], Any], iterations: int, every: int, device: torch.device
) -> Iterator[Held]:
    """Run, and look at the memory from time to time.

    Args:
        step: One iteration.
        iterations: Their number, a multiple of ``every``.
        every: After how many to look.
        device: Where the run computes.

    Yields:
        What is held after each ``every`` iterations.

    Raises:
        ValueError: ``every`` is less than 1 or does not divide ``iterations``.
    """
    if every < 1 or iterations % every:
        raise ValueError(
            f'every must be at least 1 and divide iterations={iterations}; got {every}.'
        )
    for done in range(every, iterations + 1, every):
        for _ in range(every):
            step()
        gc.collect()
        yield Held(done, process_bytes(device), tensor_bytes())


def growth(held: Sequence[Held], warm_up: int) -> Held:
    """Tell by how much the most that is held grows after the first iterations.

    Args:
        held: What :func:`follow_memory` yields.
        warm_up: Number of iterations in which memory may grow; some of those looked at
            lie before its end, and some after.

    Returns:
        Bytes, negative if it shrank.
    """
    first = [x for x in held if x.iteration <= warm_up]
    later = held[len(first) :]
    return Held(
        later[-1].iteration - first[-1].iteration,
        max(x.process for x in later) - max(x.process for x in first),
        max(x.tensors for x in later) - max(x.tensors for x in first),
    )


def process_bytes(device: torch.device) -> int:
    """Measure the memory of this process (Linux), or what torch has on a GPU.

    Args:
        device: The CPU or the GPU.

    Returns:
        Bytes.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # glibc has it
    if trim is not None:
        trim(0)
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE')


def tensor_bytes() -> int:
    """Add up the memory of all tensors that Python can reach.

    Returns:
        Bytes; what several tensors share counts once.
    """
    storages = {
        x.untyped_storage()._cdata: x.untyped_storage().nbytes()
        for x in gc.get_objects()
        if issubclass(type(x), Tensor)
    }
    return sum(storages.values())
