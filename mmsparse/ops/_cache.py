"""Cache of tensors that depend on sizes alone, such as indices and masks."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mmsparse.ops._backend import is_tracing

# Of one function: the sizes of all layers of a model. With images of random sizes, most
# are new, and more entries would only take memory.
MAX_ENTRIES = 32

Result = TypeVar('Result')
_caches: list[OrderedDict] = []


def cached_by_size(
    build: Callable[..., Result],
) -> Callable[..., Result]:
    """Cache what a function builds from sizes and a device.

    On a GPU, a dozen small kernels would build it again in every call. Nothing is
    cached, but built again, where a graph is traced or captured or another mode sees
    every operation: its tensors are not usual ones. Nobody must change a result.

    Args:
        build: Function of hashable arguments, devices among them, that returns tensors
            without gradient.

    Returns:
        The function with a cache of its ``MAX_ENTRIES`` latest results.
    """
    cache: OrderedDict[Hashable, Result] = OrderedDict()

    @wraps(build)
    def cached(*args: Any) -> Result:
        if is_tracing() or _get_current_dispatch_mode() is not None:
            return build(*args)
        try:
            cache.move_to_end(args)
            return cache[args]
        except KeyError:  # not cached, or no longer: other threads use it, too
            pass
        # Tensors of inference mode could not be used in a training afterwards.
        with torch.inference_mode(False), torch.no_grad():
            result = build(*args)
        if not _is_capturing():  # a captured kernel has not run yet
            cache[args] = result
            if len(cache) > MAX_ENTRIES:
                cache.popitem(last=False)
        return result

    cached.cache = cache  # type: ignore[attr-defined]
    _caches.append(cache)
    return cached


def clear_caches() -> None:
    """Remove the tensors of all functions from their caches."""
    for cache in _caches:
        cache.clear()


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
