"""Transformer block of all backbones, with layer scale and stochastic depth."""

import torch
from torch import Tensor, nn

from mmsparse.models.layers.common import DepthwiseConv2d
from mmsparse.models.layers.mlp import Mlp2d
from mmsparse.models.layers.norm import LayerNorm2d


class TransformerBlock2d(nn.Module):
    """Attention and MLP, each with a residual connection and a LayerNorm.

    Args:
        attn: Attention layer, (B, C, H, W) to (B, C, H, W).
        channels: C of the feature map.
        mlp_ratio: Hidden channels of the MLP over C.
        mlp_kernel: Odd kernel size of the convolution in the MLP, 0 for none.
        mlp_residual: Whether that convolution has a residual connection.
        pos_kernel: Odd kernel size of a depthwise convolution with a residual
            connection before the attention (position encoding), 0 for none.
        layer_scale: Initial value of LayerScale on both branches, None for no
            LayerScale.
        post_norm: Normalize after the residual connections instead of before attention
            and MLP.
        norm_eps: Epsilon of the norms.
        drop_path: Drop probability of each branch.
    """

    def __init__(
        self,
        attn: nn.Module,
        channels: int,
        mlp_ratio: float = 4,
        mlp_kernel: int = 0,
        mlp_residual: bool = False,
        pos_kernel: int = 0,
        layer_scale: float | None = None,
        post_norm: bool = False,
        norm_eps: float = 1e-6,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos_conv = (
            DepthwiseConv2d(channels, pos_kernel, residual=True)
            if pos_kernel
            else nn.Identity()
        )
        self.norm1 = LayerNorm2d(channels, norm_eps)
        self.attn = attn
        self.layer_scale1 = _layer_scale(channels, layer_scale)
        self.norm2 = LayerNorm2d(channels, norm_eps)
        self.mlp = Mlp2d(channels, int(mlp_ratio * channels), mlp_kernel, mlp_residual)
        self.layer_scale2 = _layer_scale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = self.pos_conv(x)
        if self.post_norm:
            x = self.norm1(x + self.drop_path(self.layer_scale1(self.attn(x))))
            return self.norm2(x + self.drop_path(self.layer_scale2(self.mlp(x))))
        x = x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


class LayerScale2d(nn.Module):
    """Learned factor per channel.

    Args:
        channels: C of the feature map.
        initial: Initial value of the factors.
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return x * self.weight[:, None, None]


class DropPath(nn.Module):
    """Stochastic depth: during training, zero a branch for random samples.

    Args:
        drop_prob: Probability that a sample's branch is dropped, in [0, 1); the others
            are scaled by 1 / (1 - drop_prob).
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


def _layer_scale(channels: int, initial: float | None) -> nn.Module:
    return nn.Identity() if initial is None else LayerScale2d(channels, initial)
