"""Cross-shaped windows: half of the heads in horizontal, half in vertical stripes."""

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import AttentionMap, stripe_map
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_heads,
    check_positive,
    project,
)
from mmsparse.ops import cross_shaped_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import Size, crop, pad_to_multiple, pool_regions
from mmsparse.ops.stripes import clamp_stripe, cross_stripes, stripe_grid
from mmsparse.registry import MODELS


@MODELS.register_module()
class CrossShapedAttention2d(nn.Module):
    """Attention of every token to a cross: its horizontal and its vertical stripe.

    The first half of the heads attends within the horizontal, the second half within
    the vertical stripes. Where the stripe width does not divide the feature map, the
    last stripes are narrower. A depthwise convolution of the values within their stripe
    is added to the heads (locally-enhanced position encoding).

    Paper: `CSWin Transformer <https://arxiv.org/abs/2107.00652>`_, sections 3.2 and
    3.3.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads, even; divides ``in_channels``.
        stripe_width: Height of a horizontal and width of a vertical stripe; full
            attention if it is at least the size of the feature map.
        qkv_bias: Whether queries, keys and values have a bias.
        lepe_kernel: Odd kernel size of the convolution of the values, 0 for none.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        stripe_width: int = 7,
        qkv_bias: bool = True,
        lepe_kernel: int = 3,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if num_heads % 2:
            raise ValueError(
                'num_heads must be even, for horizontal and vertical stripes; got '
                f'{num_heads}.'
            )
        check_positive('stripe_width', stripe_width)
        self.num_heads = num_heads
        self.stripe_width = stripe_width
        self.qkv = nn.Linear(in_channels, 3 * in_channels, bias=qkv_bias)
        self.lepes = None
        if lepe_kernel:
            half = in_channels // 2
            self.lepes = nn.ModuleList(
                [DepthwiseConv2d(half, lepe_kernel) for _ in range(2)]
            )
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = project(self.qkv, channels_last(x)).chunk(3, dim=-1)  # (B, H, W, C)
        out = cross_shaped_attention(q, k, v, self.num_heads, self.stripe_width)
        if self.lepes is not None:
            out = out + self._enhance(v)
        return channels_first(project(self.proj, out))

    def attention_maps(
        self, x: Tensor, queries: Tensor
    ) -> tuple[AttentionMap, AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for the heads with horizontal and one for those with
            vertical stripes.
        """
        q, k, _ = project(self.qkv, channels_last(x)).chunk(3, dim=-1)
        halves = zip(
            ('horizontal', 'vertical'),
            q.chunk(2, dim=-1),
            k.chunk(2, dim=-1),
            self._stripes(x),
            strict=True,
        )
        horizontal, vertical = (
            stripe_map(name, half_q, half_k, self.num_heads // 2, stripe, queries)
            for name, half_q, half_k, stripe in halves
        )
        return horizontal, vertical

    def _enhance(self, v: Tensor) -> Tensor:
        """Convolve the values, (B, H, W, C), within their stripes."""
        halves = zip(
            v.chunk(2, dim=-1),
            self._stripes(channels_first(v)),
            self.lepes,
            strict=True,
        )
        return torch.cat([_convolve_stripes(*half) for half in halves], dim=-1)

    def _stripes(self, x: Tensor) -> tuple[Size, Size]:
        return cross_stripes((x.shape[2], x.shape[3]), self.stripe_width)


def _convolve_stripes(v: Tensor, stripe: Size, conv: nn.Module) -> Tensor:
    """Convolve every stripe of (B, H, W, C), with zeros around it."""
    size = v.shape[1], v.shape[2]
    stripe = clamp_stripe(stripe, size)
    padded = pad_to_multiple(v, stripe)
    return crop(pool_regions(padded, stripe_grid(padded, stripe), conv), size)
