"""Bi-level routing attention: every region attends to its most similar regions."""

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    own_key_weights,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_choice,
    check_heads,
    check_positive,
    project,
)
from mmsparse.ops import bilevel_routing_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import crop, pad_to_multiple, partition_regions
from mmsparse.ops.routing import Routing, check_pool, pool_keys, route
from mmsparse.registry import MODELS

PADDINGS = ('input', 'tokens')
ROUTINGS = ('hard', 'soft', 'differentiable', 'projected')


@MODELS.register_module()
class BiLevelRoutingAttention(nn.Module):
    """Attention of every region to its top-k most similar regions.

    The feature map is partitioned into ``regions_per_side`` x ``regions_per_side``
    regions. Their mean queries and mean keys decide which regions attend to which, the
    same for all heads.

    Any height and width works. Where the regions do not divide the feature map, the
    official code has two forms of padding, and weights belong to the one that they were
    trained with:

    - ``padding='input'``: the input is padded with zeros, so that the regions fit. The
      padding has the bias of the projection, and takes part in everything.
    - ``padding='tokens'``: regions have the height and width of the feature map over
      ``regions_per_side``, rounded down, and there are as many as it takes. The
      last ones are filled with zero queries, keys and values, which take part in
      the attention, but neither in the routing nor in the local convolution.

    Paper: `BiFormer <https://arxiv.org/abs/2303.08810>`_, section 3.2.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels`` and ``qk_channels``.
        topk: Number of regions that each region attends to. At most
            ``regions_per_side`` squared with ``padding='input'``; with
            ``padding='tokens'``, all regions where a feature map has fewer.
        regions_per_side: Number of regions down and across. The weights do not depend
            on it.
        qk_channels: Channels of queries and keys; ``in_channels`` if None.
        qk_scale: Factor on the dot products of queries and keys; ``qk_channels**-0.5``,
            that of all heads together, if None.
        lepe_kernel: Odd kernel size of the depthwise convolution of the values that is
            added to the output (local enhancement), 0 for none.
        padding: ``input`` or ``tokens``, see above.
        routing: ``hard`` selects regions and passes no gradient. The others also
            multiply keys and values of a selected region by the softmax of its
            affinity: ``soft`` by a constant, ``differentiable`` with gradient,
            ``projected`` with a further linear projection of the means, too.
        kv_pool: Pooling of keys and values within every region: None, or a type and a
            size. ``avg`` and ``max`` pool windows of that height and width (at most the
            region's), ``adaptive_avg`` and ``adaptive_max`` to that height and width.
        out_proj: Whether a linear projection follows.

    Raises:
        ValueError: An argument is unknown, out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        topk: int = 4,
        regions_per_side: int = 7,
        qk_channels: int | None = None,
        qk_scale: float | None = None,
        lepe_kernel: int = 5,
        padding: str = 'input',
        routing: str = 'hard',
        kv_pool: tuple[str, int] | None = None,
        out_proj: bool = True,
    ) -> None:
        super().__init__()
        qk_channels = in_channels if qk_channels is None else qk_channels
        check_heads(in_channels, num_heads)
        check_heads(qk_channels, num_heads, name='qk_channels')
        check_choice('padding', padding, PADDINGS)
        check_regions(regions_per_side, topk, padding)
        check_choice('routing', routing, ROUTINGS)
        check_pool(kv_pool)
        self.num_heads = num_heads
        self.topk = topk
        self.regions_per_side = regions_per_side
        self.padding = padding
        self.routing = routing
        self.kv_pool = kv_pool
        self.split = (qk_channels, qk_channels, in_channels)
        self.scale = qk_channels**-0.5 if qk_scale is None else qk_scale
        self.qkv = nn.Linear(in_channels, sum(self.split))
        self.router = (
            nn.Linear(qk_channels, qk_channels) if routing == 'projected' else None
        )
        self.lepe = DepthwiseConv2d(in_channels, lepe_kernel) if lepe_kernel else None
        self.proj = nn.Linear(in_channels, in_channels) if out_proj else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = self.project(x)
        out = bilevel_routing_attention(
            q,
            k,
            v,
            self.num_heads,
            self.topk,
            self.regions_per_side,
            self.scale,
            routing='differentiable' if self.router is not None else self.routing,
            router=self.router,
            kv_pool=self.kv_pool,
        )
        if self.lepe is not None:
            out = out + channels_last(self.lepe(channels_first(v)))
        return channels_first(project(self.proj, crop(out, x.shape[-2:])))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project the input to queries, keys and values.

        Args:
            x: Input of the layer, (B, C, H, W).

        Returns:
            (B, H', W', ...) each, padded if ``padding`` is ``input``.
        """
        x = channels_last(x)
        if self.padding == 'input':
            x = pad_to_multiple(x, (self.regions_per_side, self.regions_per_side))
        return project(self.qkv, x).split(self.split, dim=-1)

    def regions(self, x: Tensor) -> Routing:
        """Compute which regions of a feature map attend to which.

        Args:
            x: Input of the layer, (B, C, H, W).

        Returns:
            The regions and their routes.
        """
        q, k, _ = self.project(x)
        return self._route(q, k)

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads. Keys may be in the padding, beyond the
            feature map.
        """
        q, k, _ = self.project(x)
        routing = self._route(q, k)
        (h, w), (_, columns) = routing.region, routing.grid
        # 1. Keys by region, padded and pooled as in the op.
        k = pool_keys(pad_to_multiple(k, routing.region), routing.grid, self.kv_pool)
        k = partition_regions(k, routing.grid)  # (B, R, L, D)
        # 2. The region of every query, and its routes.
        row, column = queries // x.shape[-1], queries % x.shape[-1]
        region = row // h * columns + column // w  # (n,)
        routes = routing.routes[:, region]  # (B, n, K)
        # 3. The keys of its routed regions, weighted unless routing is hard.
        batch = torch.arange(len(k), device=k.device)[:, None, None]
        keys = k[batch, routes]  # (B, n, K, L, D)
        if self.routing != 'hard':
            keys = keys * routing.scores[:, region, :, None, None]
        weights = own_key_weights(
            q[:, row, column], keys.flatten(2, 3), self.num_heads, self.scale
        )
        # 4. Indices of these keys, which are counted region by region.
        length = k.shape[2]
        index = routes[..., None] * length + torch.arange(length, device=k.device)
        centers, extent = self._key_centers(routing, x)
        keys = centers.expand(len(x), -1, -1)
        return (AttentionMap('', weights, index.flatten(2), keys, extent),)

    def _route(self, q: Tensor, k: Tensor) -> Routing:
        return route(
            q, k, self.topk, self.regions_per_side, self.scale, router=self.router
        )

    def _key_centers(
        self, routing: Routing, like: Tensor
    ) -> tuple[Tensor, tuple[float, float]]:
        """Return the centers of all keys, region by region, and their extent."""
        h, w = routing.region
        size, extent = (h, w), (1, 1)  # keys of a region down and across
        if self.kv_pool is not None:
            name, length = self.kv_pool
            if name.startswith('adaptive'):
                size, extent = (length, length), (h / length, w / length)
            else:
                extent = (min(length, h), min(length, w))
                size = (h // extent[0], w // extent[1])
        corners = key_centers(routing.grid, like, (h, w))
        corners = corners - corners.new_tensor([h, w]) / 2  # (R, 2)
        centers = corners[:, None] + key_centers(size, like, extent)  # (R, L, 2)
        return centers.flatten(0, 1), extent


def check_regions(regions_per_side: int, topk: int, padding: str = 'input') -> None:
    """Raise ValueError unless there are at least ``topk`` regions.

    Args:
        regions_per_side: Number of regions down and across.
        topk: Number of regions that each region attends to.
        padding: ``input``, or ``tokens``, with which there can be more regions.

    Raises:
        ValueError: There are no regions, or fewer than ``topk``, or ``topk`` is 0.
    """
    check_positive('regions_per_side', regions_per_side)
    most = regions_per_side**2 if padding == 'input' else topk
    if not 1 <= topk <= most:
        raise ValueError(
            f'topk must be between 1 and the number of regions, {regions_per_side**2} '
            f'(regions_per_side={regions_per_side}); got {topk}.'
        )
