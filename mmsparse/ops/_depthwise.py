"""Depthwise convolution with a backward pass that is fast on CPUs."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import is_transforming, resolve_backend
from mmsparse.ops._precision import autocast_enabled

BACKENDS = ('auto', 'reference', 'folded', 'tiled')
# Kernel columns up to which oneDNN's weight gradient is fast. Measured: 0.7 ms for
# kernels of 5x3, 9.5 ms for 5x5 (8 feature maps of 64x56x56, two threads).
TILE_COLUMNS = 3


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Convolve every channel separately, keeping the size of the feature map.

    Args:
        x: Feature map, (B, C, H, W).
        weight: Kernels of odd height and width, (C, 1, k, k').
        bias: Added to every channel, (C,).
        residual: Add the feature map to the result.
        backend: ``reference``; ``folded``, in which the kernel adds the residual;
            ``tiled``, the same with the weight gradient of wide kernels computed for
            ``TILE_COLUMNS`` kernel columns at a time; or ``auto``.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: The kernels have an even height or width, or ``backend`` is
            unknown.
    """
    height, width = weight.shape[-2:]
    if not (height % 2 and width % 2):
        raise ValueError(
            'weight must have kernels of odd height and width, which keep the size of '
            f'the feature map; got {height}x{width}.'
        )
    backend = resolve_backend(backend, BACKENDS)
    if backend == 'auto':
        plain = torch.jit.is_tracing() or is_transforming()
        wide = width > TILE_COLUMNS and not plain
        fast = 'tiled' if wide else 'folded'
        backend = fast if _is_float32_on_cpu(x, weight) else 'reference'
    if backend == 'reference':
        out = convolve(x, weight, bias)
        return x + out if residual else out
    if residual:
        weight = with_identity(weight)
    run = _TiledConvolution.apply if backend == 'tiled' else convolve
    return run(x, weight, bias)


def _is_float32_on_cpu(x: Tensor, weight: Tensor) -> bool:
    """Return whether tiling pays; in half precision, 1 + weight would be rounded."""
    single = x.dtype == weight.dtype == torch.float32
    return single and x.device.type == 'cpu' and not autocast_enabled('cpu')


class _TiledConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return _tiled_gradients(grad, x, weight, ctx.needs_input_grad)


def depthwise_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a depthwise convolution with bias.

    Args:
        grad: Gradient of its result, (B, C, H, W).
        x: Its argument, (B, C, H, W).
        weight: Its kernels, (C, 1, k, k').
        needed: Whether the gradient of the argument, the kernels and the bias is
            needed.

    Returns:
        These gradients, None where it is not.
    """
    height, width = weight.shape[-2:]
    if width > TILE_COLUMNS:
        return _tiled_gradients(grad, x, weight, needed)
    return torch.ops.aten.convolution_backward(
        grad,
        x,
        weight,
        bias_sizes=[len(weight)],
        stride=(1, 1),
        padding=(height // 2, width // 2),
        dilation=(1, 1),
        transposed=False,
        output_padding=(0, 0),
        groups=len(weight),
        output_mask=needed,
    )


def _tiled_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    needs_x, needs_weight, needs_bias = needed
    grad = grad.contiguous(memory_format=torch.channels_last)
    return (
        convolve(grad, weight.flip(-2, -1), None) if needs_x else None,
        _weight_gradient(x, weight, grad) if needs_weight else None,
        grad.sum((0, 2, 3)) if needs_bias else None,
    )


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Compute the gradient of the kernels, a few of their columns at a time.

    Column j of a kernel reads the feature map j - width // 2 columns to the right. So
    the columns of a tile have their own kernel, on a feature map that is cropped or
    padded on both sides so that their first column meets the first column of ``grad``.
    """
    height, width = weight.shape[-2:]
    gradients, left = [], width // 2
    for columns in weight.split(TILE_COLUMNS, dim=-1):
        # 1. Shift the feature map: `left` columns of zeros before it, or as many of its
        # columns less where that is negative; on the right, what keeps the width.
        right = columns.shape[-1] - 1 - left
        shifted = _pad_columns(x, left, right)
        # 2. Let oneDNN compute the weight gradient of this kernel. Rows are
        # padded as in the forward pass, columns have been padded above.
        _, gradient, _ = torch.ops.aten.convolution_backward(
            grad,
            shifted,
            columns,
            bias_sizes=None,
            stride=(1, 1),
            padding=(height // 2, 0),
            dilation=(1, 1),
            transposed=False,
            output_padding=(0, 0),
            groups=len(weight),
            output_mask=(False, True, False),
        )  # (C, 1, k, columns)
        gradients.append(gradient)
        # 3. The next tile starts further to the right.
        left -= columns.shape[-1]
    return torch.cat(gradients, dim=-1)


def _pad_columns(x: Tensor, left: int, right: int) -> Tensor:
    """Pad with zero columns on both sides; crop where a number is negative.

    (F.pad crops too, but no more columns than the feature map has.)
    """
    padded = F.pad(x, (max(left, 0), max(right, 0)))
    return padded.narrow(-1, max(-left, 0), x.shape[-1] + left + right)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every channel of (B, C, H, W) separately."""
    height, width = weight.shape[-2:]
    padding = (height // 2, width // 2)
    return F.conv2d(x, weight, bias, padding=padding, groups=len(weight))


def with_identity(weight: Tensor) -> Tensor:
    """Return kernels (C, 1, k, k') that add the feature map to its convolution."""
    height, width = weight.shape[-2:]
    identity = torch.zeros_like(weight[0, 0])
    identity[height // 2, width // 2] = 1
    return weight + identity
