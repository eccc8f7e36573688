"""Neighborhood attention, with projections and a relative position bias."""

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    own_key_weights,
)
from mmsparse.models.layers.common import (
    check_heads,
    check_positive,
    project,
)
from mmsparse.ops import neighborhood_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import crop, pad_to_size
from mmsparse.registry import MODELS


@MODELS.register_module()
class NeighborhoodAttention2d(nn.Module):
    """Attention of every token to the square of its neighbors.

    At the borders the square moves inside the feature map. A feature map smaller than
    the square is padded with zeros at the bottom and at the right, and the padding
    takes part in attention (the released models were trained so).

    With a dilation the square spans more of the feature map, with as many keys in it:
    the nearest tokens among every ``dilation``-th row and column.

    Papers: `Neighborhood Attention Transformer <https://arxiv.org/abs/2204.07143>`_;
    with a dilation, `DiNAT <https://arxiv.org/abs/2209.15001>`_.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        kernel_size: Odd height and width of the square.
        dilation: Distance of neighboring keys. A feature map smaller than
            ``kernel_size`` times ``dilation`` is padded.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        kernel_size: int = 7,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f'kernel_size must be odd and positive; got {kernel_size}.'
            )
        check_positive('dilation', dilation)
        self.kernel_size = kernel_size
        self.dilation = dilation
        self.qkv = nn.Linear(in_channels, 3 * in_channels)
        self.proj = nn.Linear(in_channels, in_channels)
        span = 2 * kernel_size - 1
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, span, span)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = self._project(x)
        table = self.relative_position_bias_table
        out = neighborhood_attention(q, k, v, table, dilation=self.dilation)
        return channels_first(project(self.proj, crop(out, x.shape[-2:])))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads. Keys may be in the padding, beyond the
            feature map.
        """
        q, k, _ = self._project(x)
        table, kernel = self.relative_position_bias_table, self.kernel_size
        dilation = self.dilation
        size = q.shape[1:3]
        # 1. Along each axis, the neighbors of every query among those with its
        # remainder of the dilation, (n, kernel), and their entries in the table, by key
        # minus query.
        query_axes = queries // x.shape[-1], queries % x.shape[-1]
        keys, entries = [], []
        for query, length in zip(query_axes, size, strict=True):
            inner, phase = query // dilation, query % dilation
            last = (length - 1 - phase) // dilation + 1 - kernel
            first = (inner - kernel // 2).clamp(min=0).minimum(last)
            key = first[:, None] + torch.arange(kernel, device=x.device)
            keys.append(key * dilation + phase[:, None])
            entries.append(key - inner[:, None] + kernel - 1)
        # 2. Both axes combined: indices of the keys, (n, M), and their bias.
        index = (keys[0][:, :, None] * size[1] + keys[1][:, None]).flatten(1)
        bias = table[:, entries[0][:, :, None], entries[1][:, None]].flatten(2)
        # 3. Attention to these keys.
        weights = own_key_weights(
            q[:, query_axes[0], query_axes[1]],
            k.flatten(1, 2)[:, index],
            len(table),
            (x.shape[1] // len(table)) ** -0.5,
            bias,
        )
        centers = key_centers(size, x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, index.expand(len(x), -1, -1), centers),)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to queries, keys and values, (B, H', W', C) each."""
        x = pad_to_size(channels_last(x), self.kernel_size * self.dilation)
        return project(self.qkv, x).chunk(3, dim=-1)
