"""A map with local detail of its own added."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops.backends import pick_backend

BACKENDS = ('auto', 'reference', 'folded')


def add_detail(
    x: Tensor, weight: Tensor, bias: Tensor, backend: str = 'auto'
) -> Tensor:
    """Add a depthwise convolution of a map to the map.

    Args:
        x: (B, C, H, W).
        weight: One kernel a channel, (C, 1, K, K), K odd. The map is padded with zeros.
        bias: (C,).
        backend: How to compute it: ``reference``, ``folded`` (the map is added by the
            centre of the kernel) or ``auto``.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: ``backend`` is unknown.

    Source: Shunted Self-Attention, arXiv 2111.15193, the detail-specific feed-forward.
    """
    backend = pick_backend(backend, BACKENDS)
    if backend == 'auto':
        # A kernel of half precision next to 1 would lose its last digits.
        exact = x.dtype in (torch.float32, torch.float64)
        backend = 'folded' if exact else 'reference'
    if backend == 'reference':
        return x + _depthwise(x, weight, bias)
    return _depthwise(x, weight + _identity(weight), bias)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


def _identity(weight: Tensor) -> Tensor:
    """The kernel that leaves a map as it is, (K, K)."""
    padding = weight.shape[-1] // 2
    return F.pad(weight.new_ones(1, 1), [padding] * 4)
