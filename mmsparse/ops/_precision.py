"""Where a rounded half would change what a model does: routes, positions, biases."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def precise_type(x: Tensor) -> torch.dtype:
    """Tell the type to compute in.

    Args:
        x: Any floating type.

    Returns:
        That of the tensor, float32 at least.
    """
    return torch.promote_types(x.dtype, torch.float32)


def no_autocast(like: Tensor) -> AbstractContextManager:
    """Switch autocast off.

    Args:
        like: Gives the device.

    Returns:
        The context to compute in; one that does nothing where autocast is off, for ONNX
        has no other.
    """
    device = 'cpu' if like.is_meta else like.device.type  # meta has no autocast
    if not autocasts(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def autocasts(device: str) -> bool:
    """Tell whether operations take halves.

    Args:
        device: Type of a device, for example ``cpu``.

    Returns:
        Whether autocast is on for it.
    """
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # torch before 2.4
        on_cpu = device == 'cpu'
        return (
            torch.is_autocast_cpu_enabled() if on_cpu else torch.is_autocast_enabled()
        )
