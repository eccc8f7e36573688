"""Window attention, plain, shifted or dilated, with a relative position bias."""

from typing import Any

import torch
import torch.nn.functional as F
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
from mmsparse.ops import window_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import crop, pad_to_multiple
from mmsparse.ops.windows import MASKED, check_shift, window_bias
from mmsparse.registry import MODELS


@MODELS.register_module()
class WindowAttention2d(nn.Module):
    """Attention of every token to the tokens of its window.

    A feature map that the windows do not divide is padded with zeros at the bottom and
    at the right, and the padding takes part in attention (the released dense models
    were trained so). Loading a table of another window size resizes it.

    Paper: `Swin Transformer <https://arxiv.org/abs/2103.14030>`_, section 3.2; with a
    dilation, as the grid attention of `MaxViT <https://arxiv.org/abs/2204.01697>`_.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        window_size: Height and width of a window.
        shift: Shift of the windows down and right in tokens, 0 to ``window_size`` - 1.
        dilation: Distance of neighboring tokens of a window, in whose gaps other
            windows are; also the unit of ``shift``.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        window_size: int = 7,
        shift: int = 0,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        check_positive('window_size', window_size)
        check_positive('dilation', dilation)
        check_shift(shift, window_size)
        self.window_size = window_size
        self.shift = shift
        self.dilation = dilation
        self.qkv = nn.Linear(in_channels, 3 * in_channels)
        self.proj = nn.Linear(in_channels, in_channels)
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = self._project(x)
        bias = window_bias(self.relative_position_bias_table, self.window_size)
        out = window_attention(
            q, k, v, bias, self.window_size, self.shift, dilation=self.dilation
        )
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
        size, window, dilation = q.shape[1:3], self.window_size, self.dilation
        query_axes = queries // x.shape[-1], queries % x.shape[-1]
        # 1. Along each axis, among the tokens with the query's remainder of the
        # dilation, rolled back by the shift: the index of every query in its window,
        # (n,), the keys of the window, and which of them come from the other end of the
        # feature map, (n, window).
        inner, keys, cut = [], [], []
        for query, padded in zip(query_axes, size, strict=True):
            length, phase = padded // dilation, query % dilation
            rolled = (query // dilation - self.shift) % length
            inner.append(rolled % window)
            first = (rolled - inner[-1])[:, None]
            rolled_keys = first + torch.arange(window, device=x.device)
            inner_keys = (rolled_keys + self.shift) % length
            keys.append(inner_keys * dilation + phase[:, None])
            other_end = length - self.shift  # where it begins
            cut.append((rolled_keys >= other_end) != (rolled >= other_end)[:, None])
        # 2. Both axes combined: indices of the keys, (n, M), and their bias.
        index = (keys[0][:, :, None] * size[1] + keys[1][:, None]).flatten(1)
        masked = (cut[0][:, :, None] | cut[1][:, None]).flatten(1)
        bias = window_bias(self.relative_position_bias_table, window)
        bias = bias[:, inner[0] * window + inner[1]]  # (heads, n, M)
        # 3. Attention to these keys.
        weights = own_key_weights(
            q[:, query_axes[0], query_axes[1]],
            k.flatten(1, 2)[:, index],
            len(bias),
            (x.shape[1] // len(bias)) ** -0.5,
            bias + MASKED * masked,
        )
        centers = key_centers(size, x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, index.expand(len(x), -1, -1), centers),)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to queries, keys and values, (B, H', W', C) each."""
        x = pad_to_multiple(channels_last(x), (self.window_size * self.dilation,) * 2)
        return project(self.qkv, x).chunk(3, dim=-1)

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
        return table  # already of this size, or not square: loading reports that
    planes = table.t().reshape(1, -1, old, old)
    planes = F.interpolate(planes, size=(span, span), mode='bicubic')
    return planes.flatten(2)[0].t()
