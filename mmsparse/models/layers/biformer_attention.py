"""The attention layers of BiFormer: routed, full, and none at all."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.common import (
    channels_first,
    channels_last,
    depthwise_conv,
)
from mmsparse.ops import (
    merge_regions,
    pad_to_multiple,
    partition_regions,
    route_regions,
    routed_attention,
)
from mmsparse.registry import MODELS


@MODELS.register_module()
class BiLevelRoutingAttention(nn.Module):
    """Attention of every region to the regions most akin to it.

    The map is cut into ``regions_per_side`` x ``regions_per_side`` regions; a map of
    another size is padded with zeros at the bottom and at the right, and the padding
    takes part (so the released models were trained). Products of queries and keys are
    scaled by the width of all heads together. Routing passes no gradient.

    Paper: `BiFormer <https://arxiv.org/abs/2303.08810>`_, section 3.2.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels`` and ``qk_channels``.
        topk: Number of regions that each region attends to, at most
            ``regions_per_side`` squared.
        regions_per_side: Number of regions down and across. Not tied to the weights.
        qk_channels: Width of queries and keys; ``in_channels`` if None.
        local_kernel: Odd edge length of the depthwise convolution of the values that
            is added to the output (local context enhancement), 0 for none.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        topk: int = 4,
        regions_per_side: int = 7,
        qk_channels: int | None = None,
        local_kernel: int = 5,
    ) -> None:
        super().__init__()
        qk_channels = in_channels if qk_channels is None else qk_channels
        check_heads(in_channels, num_heads)
        check_heads(qk_channels, num_heads, name='qk_channels')
        check_regions(regions_per_side, topk)
        self.num_heads = num_heads
        self.topk = topk
        self.regions_per_side = regions_per_side
        self.split = (qk_channels, qk_channels, in_channels)
        self.scale = qk_channels**-0.5
        self.qkv = nn.Linear(in_channels, sum(self.split))
        self.local = depthwise_conv(in_channels, local_kernel) if local_kernel else None
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        height, width = x.shape[-2:]
        grid = (self.regions_per_side, self.regions_per_side)
        x = pad_to_multiple(channels_last(x), self.regions_per_side)
        q, k, v = self.qkv(x).split(self.split, dim=-1)  # (B, H', W', ...)
        out = self._attend(*(partition_regions(tokens, grid) for tokens in (q, k, v)))
        out = merge_regions(out, grid, size=x.shape[1:3])
        if self.local is not None:
            out = out + channels_last(self.local(channels_first(v)))
        out = self.proj(out)[:, :height, :width]
        return channels_first(out)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        query_mean = self.scale * q.detach().mean(dim=2)
        routes = route_regions(query_mean, k.detach().mean(dim=2), self.topk)
        return routed_attention(q, k, v, routes, self.num_heads, self.scale)


class FullAttention2d(nn.Module):
    """Attention of every position to every other, in BiFormer's last stage.

    The official models add a depthwise convolution of the *input* to the heads, not
    one of the values as in the routed stages.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        local_kernel: Odd edge length of that convolution, 0 for none.

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``.
    """

    def __init__(
        self, in_channels: int, num_heads: int = 8, local_kernel: int = 5
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(in_channels, 3 * in_channels, bias=False)
        self.local = depthwise_conv(in_channels, local_kernel) if local_kernel else None
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        batch, _, height, width = x.shape
        qkv = self.qkv(channels_last(x)).reshape(
            batch, height * width, 3, self.num_heads, -1
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, width of a head)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.transpose(1, 2).reshape(batch, height, width, -1)
        if self.local is not None:
            out = out + channels_last(self.local(x))
        return channels_first(self.proj(out))


class ConvMixer2d(nn.Sequential):
    """What BiFormer puts in place of attention where a stage routes to no region.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size=1),
            depthwise_conv(channels, kernel_size=5),
            nn.Conv2d(channels, channels, kernel_size=1),
        )


def check_heads(channels: int, num_heads: int, name: str = 'in_channels') -> None:
    """Raise ValueError unless the heads divide the channels.

    Args:
        channels: Width to divide.
        num_heads: Number of heads.
        name: What the caller's user calls the width.

    Raises:
        ValueError: They do not.
    """
    if num_heads < 1 or channels % num_heads:
        raise ValueError(
            f'{name} must be divisible by num_heads; got {name}={channels} and '
            f'num_heads={num_heads}.'
        )


def check_regions(regions_per_side: int, topk: int) -> None:
    """Raise ValueError unless so many regions can be routed to.

    Args:
        regions_per_side: Number of regions down and across.
        topk: Number of regions to route to.

    Raises:
        ValueError: There are none, or fewer than ``topk``.
    """
    if regions_per_side < 1:
        raise ValueError(
            f'regions_per_side must be at least 1; got {regions_per_side}.'
        )
    if not 1 <= topk <= regions_per_side**2:
        raise ValueError(
            f'topk must be between 1 and the number of regions, {regions_per_side**2} '
            f'(regions_per_side={regions_per_side}); got {topk}.'
        )
