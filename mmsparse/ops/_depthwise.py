"""Depthwise convolution, with a backward pass that is quick on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import pick_backend
from mmsparse.ops._precision import autocasts

BACKENDS = ('auto', 'reference', 'folded', 'tiled')
# Columns of a kernel whose gradient oneDNN is quick to find: measured, it took 0.7 ms
# for kernels of 5x3, and 9.5 ms for 5x5 (8 maps of 64x56x56, two threads).
QUICK_WIDTH = 3


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Convolve every channel by itself, keeping the size of the map.

    Args:
        x: Map, (B, C, H, W).
        weight: Kernels with odd edges, (C, 1, k, k').
        bias: Added to every channel, (C,).
        residual: Add the map itself.
        backend: How to compute it: ``reference``, ``folded`` (the kernels add the map),
            ``strips`` (the same, and the gradient of wide kernels is found a few
            columns at a time) or ``auto``.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: An edge of the kernels is even, or ``backend`` is unknown.
    """
    height, width = weight.shape[-2:]
    if not (height % 2 and width % 2):
        raise ValueError(
            'weight must have odd edges, so that the map keeps its size; got kernels '
            f'of {height}x{width}.'
        )
    backend = pick_backend(backend, BACKENDS)
    if backend == 'auto':
        strips = 'tiled' if width > QUICK_WIDTH else 'folded'
        backend = strips if _is_single_on_cpu(x, weight) else 'reference'
    if backend == 'reference':
        out = _convolve(x, weight, bias)
        return x + out if residual else out
    if residual:
        weight = weight + _identity(weight)
    convolve = _Stripwise.apply if backend == 'tiled' else _convolve
    return convolve(x, weight, bias)


def _is_single_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Whether strips pay, and a kernel next to 1 keeps its digits."""
    single = x.dtype == weight.dtype == torch.float32
    return single and x.device.type == 'cpu' and not autocasts('cpu')


class _Stripwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad = grad.contiguous(memory_format=torch.channels_last)
        return (
            _convolve(grad, weight.flip(-2, -1), None) if wants_x else None,
            _weight_gradient(x, weight, grad) if wants_weight else None,
            grad.sum((0, 2, 3)) if wants_bias else None,
        )


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    height, width = weight.shape[-2:]
    found, left = [], width // 2
    for columns in weight.split(QUICK_WIDTH, dim=-1):
        strip = _extend(x, left, columns.shape[-1] - 1 - left)
        _, part, _ = torch.ops.aten.convolution_backward(
            grad,
            strip,
            columns,
            bias_sizes=None,
            stride=(1, 1),
            padding=(height // 2, 0),
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=len(weight),
            output_mask=(False, True, False),
        )
        found.append(part)
        left -= columns.shape[-1]
    return torch.cat(found, dim=-1)


def _extend(x: Tensor, left: int, right: int) -> Tensor:
    """Add columns of zeros at both ends; negative numbers take columns away.

    (F.pad does that too, but cannot take away more columns than the map has.)
    """
    wider = F.pad(x, (max(left, 0), max(right, 0)))
    return wider.narrow(-1, max(-left, 0), x.shape[-1] + left + right)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    height, width = weight.shape[-2:]
    padding = (height // 2, width // 2)
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


def _identity(weight: Tensor) -> Tensor:
    """The kernel that changes nothing, (k, k')."""
    height, width = weight.shape[-2:]
    identity = torch.zeros_like(weight[0, 0])
    identity[height // 2, width // 2] = 1
    return identity
