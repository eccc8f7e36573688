"""MLP with an optional depthwise convolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    is_plain,
    is_plain_linear,
    project,
)
from mmsparse.ops._chunking import checkpointed, chunked
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops._mlp import fused_mlp, suits_fused_mlp


class Mlp2d(nn.Module):
    """Linear layer, optional depthwise convolution, GELU, linear layer.

    The hidden features are the largest tensor of a block. On a CPU they are computed a
    few images at a time, and all that follows the first linear layer is checkpointed;
    in single precision, by fewer passes over them.

    Args:
        channels: C of the feature map.
        hidden_channels: Channels between the linear layers.
        kernel_size: Odd kernel size of the convolution, 0 for none.
        residual: Whether the hidden features are added to their convolution.
    """

    def __init__(
        self,
        channels: int,
        hidden_channels: int,
        kernel_size: int = 0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_channels = hidden_channels
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.dwconv = (
            DepthwiseConv2d(hidden_channels, kernel_size, residual)
            if kernel_size
            else None
        )
        self.fc2 = nn.Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self._is_plain() and suits_fused_mlp(x, self.fc1.weight, self.fc2.weight):
            return channels_first(self._run_fused(channels_last(x)))
        _, _, height, width = x.shape
        hidden_numel = height * width * self.hidden_channels  # of one image
        return channels_first(chunked(self._run, channels_last(x), hidden_numel))

    def _is_plain(self) -> bool:
        """Return whether calling the layers is no more than applying their weights."""
        linear = is_plain_linear(self.fc1) and is_plain_linear(self.fc2)
        return linear and (
            self.dwconv is None or is_plain(self.dwconv, DepthwiseConv2d)
        )

    def _run_fused(self, x: Tensor) -> Tensor:
        fc1, fc2 = ((y.weight, y.bias) for y in (self.fc1, self.fc2))
        if self.dwconv is None:
            return fused_mlp(x, fc1, fc2)
        conv = self.dwconv
        return fused_mlp(x, fc1, fc2, (conv.weight, conv.bias), conv.residual)

    def _run(self, x: Tensor) -> Tensor:
        return checkpointed(self._finish, project(self.fc1, x))

    def _finish(self, x: Tensor) -> Tensor:
        return project(self.fc2, F.gelu(self._convolve(x)))

    def _convolve(self, x: Tensor) -> Tensor:
        if self.dwconv is None:
            return x
        return channels_last(self.dwconv(channels_first(x)))
