"""Small parts that the backbones share, all on maps of (B, C, H, W)."""

import torch.nn.functional as F
from torch import Tensor, nn


def channels_last(x: Tensor) -> Tensor:
    """View (B, C, H, W) as (B, H, W, C)."""
    return x.permute(0, 2, 3, 1)


def channels_first(x: Tensor) -> Tensor:
    """View (B, H, W, C) as (B, C, H, W)."""
    return x.permute(0, 3, 1, 2)


def depthwise_conv(channels: int, kernel_size: int) -> nn.Conv2d:
    """Depthwise convolution that keeps the size of the map.

    Args:
        channels: C of the map.
        kernel_size: Odd edge length of the kernel.

    Returns:
        The convolution, with bias.
    """
    return nn.Conv2d(
        channels, channels, kernel_size, padding=kernel_size // 2, groups=channels
    )


class LayerNorm2d(nn.LayerNorm):
    """Layer normalisation over the channels of every position.

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


class Mlp2d(nn.Module):
    """Two linear maps with GELU between them, on every position.

    Args:
        channels: C of the map.
        ratio: Hidden width over C.
    """

    def __init__(self, channels: int, ratio: float) -> None:
        super().__init__()
        hidden = int(ratio * channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc2(F.gelu(self.fc1(channels_last(x))))
        return channels_first(x)
