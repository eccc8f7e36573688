"""Small parts that the backbones share, all on maps of (B, C, H, W)."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.ops._chunking import checkpointed
from mmsparse.ops._depthwise import depthwise_conv2d
from mmsparse.ops._linear import linear_map


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


class Linear(nn.Linear):
    """A linear map of the channels of (B, H, W, C); options are those of torch."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H, W, C')."""
        return linear_map(x, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution with bias that keeps the size of the map.

    Args:
        channels: C of the map.
        kernel_size: Odd edge length of the kernel.
        residual: Whether the map itself is added.
    """

    def __init__(self, channels: int, kernel_size: int, residual: bool = False) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
        )
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return depthwise_conv2d(x, self.weight, self.bias, self.residual)


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels of every position.

    Args:
        channels: C of the map.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(
            channels_last(x), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return channels_first(x)


NORMS = {'batch': nn.BatchNorm2d, 'layer': LayerNorm2d}


class LayerScale2d(nn.Module):
    """A learned factor for every channel.

    Args:
        channels: C of the map.
        start: What the factors start from.
    """

    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(start)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x * self.weight[:, None, None]


class DropPath(nn.Module):
    """Stochastic depth: while training, a branch is zero for some of the samples.

    Args:
        drop_prob: Probability that a sample loses the branch, 0 to less than 1; the
            others are scaled up to the same mean.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to (B, ...)."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = 1 - self.drop_prob
        shape = (x.shape[0], *(1,) * (x.ndim - 1))
        return x * x.new_empty(shape).bernoulli_(kept).div_(kept)


class Mlp2d(nn.Module):
    """Two linear maps with GELU between them, on every position.

    Args:
        channels: C of the map.
        ratio: Hidden width over C.
        kernel_size: Odd edge length of a depthwise convolution before GELU, 0 for
            none.
    """

    def __init__(self, channels: int, ratio: float, kernel_size: int = 0) -> None:
        super().__init__()
        hidden = int(ratio * channels)
        self.fc1 = Linear(channels, hidden)
        self.dwconv = DepthwiseConv2d(hidden, kernel_size) if kernel_size else None
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(channels_last(x))
        if self.dwconv is not None:
            x = channels_last(self.dwconv(channels_first(x)))
        return channels_first(checkpointed(self._project, x))

    def _project(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(x))


class ConvMlp2d(nn.Module):
    """Two linear maps with a depthwise convolution and GELU between them.

    Args:
        channels: C of the map.
        ratio: Hidden width over C.
        residual: Add the convolution to what it is applied to, instead of replacing it.
    """

    def __init__(self, channels: int, ratio: float, residual: bool = True) -> None:
        super().__init__()
        hidden = int(ratio * channels)
        self.fc1 = Linear(channels, hidden)
        self.dwconv = DepthwiseConv2d(hidden, kernel_size=3, residual=residual)
        self.fc2 = Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(channels_last(x))
        return channels_first(checkpointed(self._project, x))

    def _project(self, x: Tensor) -> Tensor:
        x = channels_last(self.dwconv(channels_first(x)))
        return self.fc2(F.gelu(x))


def check_heads(channels: int, num_heads: int, name: str = 'in_channels') -> None:
    """Raise ValueError unless the heads divide the channels.

    Args:
        channels: Width to divide.
        num_heads: Number of heads.
        name: What the caller's user calls the width.

    Raises:
        ValueError: They do not.
    """
    if num_heads < 1 or channels % num_heads:
        raise ValueError(
            f'{name} must be divisible by num_heads; got {name}={channels} and '
            f'num_heads={num_heads}.'
        )


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise ValueError unless a value is among the choices.

    Args:
        name: What the caller's user calls the argument.
        value: The value given.
        choices: What it may be.

    Raises:
        ValueError: It is something else.
    """
    if value not in choices:
        raise ValueError(f'{name} must be one of {sorted(choices)}; got {value!r}.')
