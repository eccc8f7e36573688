"""Shunted self-attention: two halves of the heads attend to keys of two scales."""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    shared_key_weights,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_choice,
    check_heads,
    check_min_size,
    project,
)
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.ops import shunted_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.registry import MODELS

SR_RATIOS = (1, 2, 4, 8)
# How the tokens of a patch become one: constructors for C and the size of the patch.
AGGREGATIONS = {
    'conv': lambda channels, size: nn.Conv2d(channels, channels, size, stride=size),
    'avg': lambda channels, size: nn.AvgPool2d(size),
    'max': lambda channels, size: nn.MaxPool2d(size),
}


@MODELS.register_module()
class ShuntedSelfAttention(nn.Module):
    """Attention at two scales: half of the heads attend to coarse keys, half to fine.

    Queries keep the resolution of the feature map. Keys and values of the first half of
    the heads come from the feature map reduced by ``sr_ratio``, those of the second
    half from it reduced by half of that. Rows and columns that do not fill a patch of
    the reduction are left out, as in the released code. A depthwise convolution adds
    local enhancement to the values. With ``sr_ratio`` 1 all heads attend to every
    token, and the enhancement is added after attention.

    Paper: `Shunted Self-Attention via Multi-Scale Token Aggregation
    <https://arxiv.org/abs/2111.15193>`_.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``, and is even unless
            ``sr_ratio`` is 1.
        sr_ratio: Spatial reduction of the coarse keys and values: 1, 2, 4 or 8; a
            feature map must not be smaller.
        qkv_bias: Whether queries, keys and values have a bias.
        aggregation: How the tokens of a patch become one: a ``conv``, as published, or
            their average (``avg``) or maximum (``max``), without weights.

    Raises:
        ValueError: An argument is unknown, out of range or does not divide, or a
            feature map is smaller than ``sr_ratio``.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        sr_ratio: int = 2,
        qkv_bias: bool = True,
        aggregation: str = 'conv',
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        check_sr_ratio(sr_ratio, num_heads)
        check_choice('aggregation', aggregation, AGGREGATIONS)
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.scale = (in_channels // num_heads) ** -0.5
        self.q = nn.Linear(in_channels, in_channels, bias=qkv_bias)
        if sr_ratio == 1:
            self.kv = nn.Linear(in_channels, 2 * in_channels, bias=qkv_bias)
            self.lepe = DepthwiseConv2d(in_channels, kernel_size=3)
        else:
            reduced = partial(
                ReducedKeyValue, in_channels, bias=qkv_bias, aggregation=aggregation
            )
            self.coarse = reduced(reduction=sr_ratio)
            self.fine = reduced(reduction=sr_ratio // 2)
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        check_min_size(x, self.sr_ratio, 'sr_ratio')
        q = project(self.q, channels_last(x)).flatten(1, 2)  # (B, H * W, C)
        out = self._attend_full(q, x) if self.sr_ratio == 1 else self._attend(q, x)
        return channels_first(project(self.proj, out))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap, ...]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for the heads with coarse and one for those with fine
            keys; one for all heads with ``sr_ratio`` 1.
        """
        q = project(self.q, channels_last(x)).flatten(1, 2)[:, queries]  # (B, n, C)
        # 1. Queries and keys of each half of the heads, and the reduction of the keys.
        if self.sr_ratio == 1:
            k = project(self.kv, channels_last(x)).flatten(1, 2).chunk(2, dim=-1)[0]
            groups = [('', q, k, 1)]
        else:
            coarse, fine = q.chunk(2, dim=-1)  # (B, n, C / 2)
            groups = [
                ('coarse', coarse, self.coarse(x)[0], self.sr_ratio),
                ('fine', fine, self.fine(x)[0], self.sr_ratio // 2),
            ]
        # 2. All queries share the keys of their half, which are patches.
        maps, num_heads = [], self.num_heads // len(groups)
        for name, group_q, k, reduction in groups:
            size = tuple(length // reduction for length in x.shape[-2:])
            extent = (reduction, reduction)
            keys = key_centers(size, x, extent).expand(len(x), -1, -1)
            attention = shared_key_weights(group_q, k, num_heads, self.scale)
            maps.append(AttentionMap(name, *attention, keys, extent))
        return tuple(maps)

    def _attend(self, q: Tensor, x: Tensor) -> Tensor:
        keys, values = zip(self.coarse(x), self.fine(x), strict=True)
        out = shunted_attention(q, keys, values, self.num_heads, self.scale)
        return out.unflatten(1, x.shape[-2:])  # (B, H, W, C)

    def _attend_full(self, q: Tensor, x: Tensor) -> Tensor:
        k, v = project(self.kv, channels_last(x)).chunk(2, dim=-1)  # (B, H, W, C)
        out = shunted_attention(
            q, [k.flatten(1, 2)], [v.flatten(1, 2)], self.num_heads, self.scale
        )
        lepe = channels_last(self.lepe(channels_first(v)))
        return out.unflatten(1, x.shape[-2:]) + lepe


class ReducedKeyValue(nn.Module):
    """Keys and values of one half of the heads, from a reduced feature map.

    Args:
        channels: C of the feature map, even.
        reduction: Height and width of the patches that become one token each.
        bias: Whether keys and values have a bias.
        aggregation: How the tokens of a patch become one, a key of ``AGGREGATIONS``.
    """

    def __init__(
        self, channels: int, reduction: int, bias: bool, aggregation: str
    ) -> None:
        super().__init__()
        self.reduce = AGGREGATIONS[aggregation](channels, reduction)
        self.norm = LayerNorm2d(channels, eps=1e-5)
        self.kv = nn.Linear(channels, channels, bias=bias)
        self.lepe = DepthwiseConv2d(channels // 2, kernel_size=3, residual=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to keys and values, both (B, N, C / 2)."""
        x = F.gelu(channels_last(self.norm(self.reduce(x))))
        k, v = project(self.kv, x).chunk(2, dim=-1)  # (B, H / r, W / r, C / 2)
        v = channels_last(self.lepe(channels_first(v)))
        return k.flatten(1, 2), v.flatten(1, 2)


def check_sr_ratio(sr_ratio: int, num_heads: int, name: str = 'sr_ratio') -> None:
    """Raise ValueError unless a spatial reduction is known and fits the heads.

    Args:
        sr_ratio: Spatial reduction of the coarse keys.
        num_heads: Number of heads.
        name: Name of the reduction in the error.

    Raises:
        ValueError: The reduction is unknown, or the heads are odd.
    """
    if sr_ratio not in SR_RATIOS:
        raise ValueError(f'{name} must be one of {SR_RATIOS}; got {sr_ratio}.')
    if sr_ratio > 1 and num_heads % 2:
        raise ValueError(
            f'num_heads must be even where keys are reduced; got num_heads={num_heads} '
            f'and {name}={sr_ratio}.'
        )
