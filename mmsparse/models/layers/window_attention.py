"""Attention within windows."""

from typing import Any

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
from mmsparse.ops import window_attention
from mmsparse.ops.regions import pad_to_multiple
from mmsparse.ops.windows import MASKED, check_shift, window_bias
from mmsparse.registry import MODELS


@MODELS.register_module()
class WindowAttention2d(nn.Module):
    """Attention of every position to the others of its window.

    A map that the windows do not divide is padded with zeros at the bottom and at the
    right, and the padding takes part (so the released dense models were trained).
    Loading a table of another window size resizes it.

    Paper: `Swin Transformer <https://arxiv.org/abs/2103.14030>`_, section 3.2.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        window_size: Edge length of a window.
        shift: Positions by which the windows are shifted down and right, 0 to
            ``window_size`` - 1.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self, in_channels: int, num_heads: int = 8, window_size: int = 7, shift: int = 0
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if window_size < 1:
            raise ValueError(f'window_size must be at least 1; got {window_size}.')
        check_shift(shift, window_size)
        self.window_size = window_size
        self.shift = shift
        self.qkv = Linear(in_channels, 3 * in_channels)
        self.proj = Linear(in_channels, in_channels)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        height, width = x.shape[-2:]
        q, k, v = self._project(x)
        bias = window_bias(self.relative_position_bias_table, self.window_size)
        out = window_attention(q, k, v, bias, self.window_size, self.shift)
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
        size, window = q.shape[1:3], self.window_size
        places = queries // x.shape[-1], queries % x.shape[-1]
        inner, seen, cut = [], [], []
        for place, length in zip(places, size, strict=True):
            # Windows are cut from a map that is rolled back by the shift.
            rolled = (place - self.shift) % length
            inner.append(rolled % window)
            others = (rolled - inner[-1])[:, None] + torch.arange(window).to(place)
            seen.append((others + self.shift) % length)  # (n, window)
            joined = length - self.shift  # from here on comes the other end of the map
            cut.append((others >= joined) != (rolled >= joined)[:, None])
        bias = window_bias(self.relative_position_bias_table, window)
        bias = bias[:, inner[0] * window + inner[1]]  # (heads, n, window ** 2)
        masked = (cut[0][:, :, None] | cut[1][:, None]).flatten(1)
        rows = (seen[0][:, :, None] * size[1] + seen[1][:, None]).flatten(1)
        weights = attend_own_keys(
            q[:, places[0], places[1]],
            k.flatten(1, 2)[:, rows],
            (x.shape[1] // len(bias)) ** -0.5,
            len(bias),
            bias + MASKED * masked,
        )
        keys = grid_centers(size, x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, rows.expand(len(x), -1, -1), keys),)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to queries, keys and values, (B, H', W', C) each."""
        x = pad_to_multiple(channels_last(x), (self.window_size,) * 2)
        return self.qkv(x).chunk(3, dim=-1)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        name = f'{prefix}relative_position_bias_table'
        if name in state_dict:
            span = 2 * self.window_size - 1
            state_dict[name] = _resized(state_dict[name], span)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _resized(table: Tensor, span: int) -> Tensor:
    """Resize a (T * T, heads) table to (span * span, heads)."""
    old = round(len(table) ** 0.5)
    if old == span or old**2 != len(table):
        return table  # equal, or none of ours: loading will say so
    planes = table.t().reshape(1, -1, old, old)
    planes = F.interpolate(planes, size=(span, span), mode='bicubic')
    return planes.flatten(2)[0].t()
