"""Precision of what half precision would change: routes, locations and biases."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def precise_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype to compute in: that of a floating tensor, float32 at least."""
    return torch.promote_types(x.dtype, torch.float32)


def no_autocast(like: Tensor) -> AbstractContextManager:
    """Return a context that disables autocast on the device of a tensor."""
    device = 'cpu' if like.is_meta else like.device.type  # meta has no autocast
    if not autocast_enabled(device):
        return nullcontext()  # the only context that ONNX export knows
    return torch.autocast(device, enabled=False)


def autocast_enabled(device: str) -> bool:
    """Return whether autocast is enabled for a device type, for example ``cpu``."""
    try:
        return torch.is_autocast_enabled(device)
    except TypeError:  # torch before 2.4
        on_cpu = device == 'cpu'
        return (
            torch.is_autocast_cpu_enabled() if on_cpu else torch.is_autocast_enabled()
        )
