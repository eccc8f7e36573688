"""Images that a backbone takes: their shape, traced size and channels."""

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from mmengine.logging import print_log
from torch import Tensor


def check_images(x: Tensor, channels: int, min_side: int) -> None:
    """Raise ValueError unless x is (B, channels, H, W), H and W at least min_side."""
    if x.ndim != 4 or not x.shape[0] or min(x.shape[2:]) < min_side:
        raise ValueError(
            f'x must be images of shape (B, {channels}, H, W) with B at least 1 and H '
            f'and W at least {min_side}, for the last stage; got {tuple(x.shape)}. '
            'Resize or pad them.'
        )
    if x.shape[1] != channels:
        raise ValueError(
            f'x must be images of in_channels={channels} channels; got {x.shape[1]}, '
            f'shape {tuple(x.shape)}. Set in_channels={x.shape[1]} of the backbone, or '
            f'load images of {channels} channels.'
        )


def fix_size(x: Tensor) -> Tensor:
    """Make the graph of ``torch.jit.trace`` raise an error for images of another size.

    Padding and grids of the traced size are constants in it. Legacy ONNX export drops
    the check, but keeps the expansion, which fails, too.
    """
    height, width = (int(length) for length in x.shape[-2:])
    return _size_check()(x, height, width).expand(-1, -1, height, width)


@cache
def _size_check() -> Callable[[Tensor, int, int], Tensor]:
    with warnings.catch_warnings():  # torch.jit is deprecated; only tracing gets here
        warnings.simplefilter('ignore')
        return torch.jit.script(_check_size)


def _check_size(x: Tensor, height: int, width: int) -> Tensor:
    found = x.shape[2], x.shape[3]
    if found != (height, width):
        raise ValueError(
            f'x must be images of the traced size {(height, width)}; got {found}. '
            'Trace the model for this size, or use torch.export.'
        )
    return x


def adapt_channels(
    state_dict: dict[str, Tensor], name: str, shape: Sequence[int]
) -> None:
    """Adapt a convolution of RGB images to other channels, in place, as timm does.

    One channel sums the weights, and thus equals RGB of three equal channels. Others
    repeat them, scaled to the same sum. Weights of other sizes are not changed.
    """
    weight, channels = state_dict.get(name), shape[1]
    if channels == 3 or weight is None or weight.shape != (shape[0], 3, *shape[2:]):
        return
    if channels == 1:
        adapted = weight.sum(1, keepdim=True)
    else:
        repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
        adapted = repeated * (3 / channels)
    state_dict[name] = adapted
    print_log(f'{name}: RGB weights adapted to in_channels={channels}.', 'current')
