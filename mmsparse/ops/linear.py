"""The same linear map at every position."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops.backends import pick_backend

BACKENDS = ('auto', 'reference', 'convolution')
# Positions from which, on a CPU, oneDNN's convolutions are faster than the BLAS library
# of torch: measured on an AMD processor with 2 threads, forward and backward took 0.7
# to 0.9 of the time at 3136 positions, all of it at 784 and more below.
MANY = 1024


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = 'auto'
) -> Tensor:
    """Map the channels of every position.

    Args:
        x: (B, H, W, C).
        weight: (C', C).
        bias: (C',); None adds nothing.
        backend: How to compute it: ``reference``, ``convolution`` with a kernel of 1x1
            or ``auto``.

    Returns:
        (B, H, W, C').

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = pick_backend(backend, BACKENDS)
    if backend == 'auto' and not _suits_convolution(x):
        backend = 'reference'
    if backend == 'reference':
        return F.linear(x, weight, bias)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return x.permute(0, 2, 3, 1)


def _suits_convolution(x: Tensor) -> bool:
    return (
        x.device.type == 'cpu'
        and x.dtype == torch.float32
        and x.shape[:-1].numel() >= MANY
        and torch.backends.mkldnn.is_available()
    )
