"""The same linear map at every position."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import is_exporting, pick_backend

BACKENDS = ('auto', 'reference', 'convolution')
# Positions from which, on a CPU, oneDNN's convolutions replace torch's BLAS library.
# Measured on an AMD processor with 2 threads, forward took 0.7 to 1.1 of the time at
# 3136 positions (the most at 64 channels), 0.8 to 1.6 at 784, 1.0 to 2.4 at 49; with
# backward 0.8 to 1.1, 0.9 to 2.3 and 1.0 to 1.9.
MANY = 1024
ONEDNN = torch.backends.mkldnn.is_available()  # a call that cannot be compiled


def linear_map(
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
        ONEDNN
        and not is_exporting()  # a graph does not count its positions
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and x.shape[:-1].numel() >= MANY
    )
