"""Normalization layers for (B, C, H, W)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.ops._layout import channels_first, channels_last


class LayerNorm2d(nn.LayerNorm):
    """Layer normalization over the channels at every position.

    Args:
        channels: C of the feature map.
        eps: Added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = F.layer_norm(
            channels_last(x), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return channels_first(x)


NORMS = {'batch': nn.BatchNorm2d, 'layer': LayerNorm2d}
