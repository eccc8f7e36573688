"""Attention to the square of positions around each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    attend_own_keys,
    grid_centers,
)
from mmsparse.models.layers.common import (
    Linear,
    channels_first,
    channels_last,
    check_heads,
)
from mmsparse.ops import neighborhood_attention
from mmsparse.registry import MODELS


@MODELS.register_module()
class NeighborhoodAttention2d(nn.Module):
    """Attention of every position to its neighbors.

    At the borders the square of neighbors moves inside the map. A map smaller than the
    square is padded with zeros at the bottom and at the right, and the padding takes
    part (so the released models were trained).

    Paper: `Neighborhood Attention Transformer <https://arxiv.org/abs/2204.07143>`_.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        kernel_size: Odd edge length of the square.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self, in_channels: int, num_heads: int = 8, kernel_size: int = 7
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(
                f'kernel_size must be odd and positive; got {kernel_size}.'
            )
        self.kernel_size = kernel_size
        self.qkv = Linear(in_channels, 3 * in_channels)
        self.proj = Linear(in_channels, in_channels)
        span = 2 * kernel_size - 1
        self.relative_position_bias_table = nn.Parameter(
            torch.empty(num_heads, span, span)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        height, width = x.shape[-2:]
        q, k, v = self._project(x)
        out = neighborhood_attention(q, k, v, self.relative_position_bias_table)
        return channels_first(self.proj(out[:, :height, :width]))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Tell where queries look.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.
            queries: Positions of the map, counted row by row, (n,).

        Returns:
            What all heads see. Keys may lie in padding, beyond the map.
        """
        q, k, _ = self._project(x)
        size, kernel = q.shape[1:3], self.kernel_size
        places = queries // x.shape[-1], queries % x.shape[-1]
        seen, steps = [], []
        for place, length in zip(places, size, strict=True):
            first = (place - kernel // 2).clamp(0, length - kernel)[:, None]
            seen.append(first + torch.arange(kernel, device=x.device))  # (n, kernel)
            steps.append(seen[-1] - place[:, None] + kernel - 1)
        bias = self.relative_position_bias_table[
            :, steps[0][:, :, None], steps[1][:, None]
        ].flatten(2)
        rows = (seen[0][:, :, None] * size[1] + seen[1][:, None]).flatten(1)
        weights = attend_own_keys(
            q[:, places[0], places[1]],
            k.flatten(1, 2)[:, rows],
            (x.shape[1] // len(self.relative_position_bias_table)) ** -0.5,
            len(self.relative_position_bias_table),
            bias,
        )
        keys = grid_centers(size, x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, rows.expand(len(x), -1, -1), keys),)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to queries, keys and values, (B, H', W', C) each."""
        height, width = x.shape[-2:]
        bottom = max(self.kernel_size - height, 0)
        right = max(self.kernel_size - width, 0)
        x = F.pad(channels_last(x), (0, 0, 0, right, 0, bottom))
        return self.qkv(x).chunk(3, dim=-1)
