"""Linear projection of channels, by a 1x1 convolution where that is faster."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import is_exporting, is_symbolic, resolve_backend
from mmsparse.ops._devices import settings_for

BACKENDS = ('auto', 'reference', 'convolution')
ONEDNN = torch.backends.mkldnn.is_available()  # a call that cannot be compiled


def linear_map(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, backend: str = 'auto'
) -> Tensor:
    """Project the channels of every token of a feature map.

    Args:
        x: Feature map, (B, H, W, C).
        weight: (C', C).
        bias: (C',); None adds nothing.
        backend: ``reference``, ``convolution`` with a 1x1 kernel, or ``auto``.

    Returns:
        (B, H, W, C').

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = resolve_backend(backend, BACKENDS)
    if backend == 'auto':
        backend = 'convolution' if suits_convolution(x) else 'reference'
    if backend == 'reference':
        return F.linear(x, weight, bias)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
    return x.permute(0, 2, 3, 1)  # (B, H, W, C')


def suits_convolution(x: Tensor) -> bool:
    """Return whether a 1x1 convolution of (B, H, W, C) is faster than BLAS."""
    return (
        ONEDNN
        and not is_exporting()  # an exported graph works for any number of tokens
        and x.device.type == 'cpu'
        and x.dtype == torch.float32
        and not is_symbolic(*x.shape[:-1])
        and x.shape[:-1].numel() >= settings_for(x).convolution_min_tokens
    )
