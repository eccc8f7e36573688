"""Where a rounded half would change what a model does: routes, positions, biases."""

from contextlib import AbstractContextManager

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
        The context to compute in.
    """
    device = 'cpu' if like.is_meta else like.device.type  # meta has no autocast
    return torch.autocast(device, enabled=False)
