"""The attention layers of BiFormer: routed, full, and none at all."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    attend_own_keys,
    attend_shared_keys,
    grid_centers,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    Linear,
    channels_first,
    channels_last,
    check_choice,
    check_heads,
)
from mmsparse.ops import routed_attention
from mmsparse.ops._precision import no_autocast
from mmsparse.ops.deformable import attend_map
from mmsparse.ops.regions import (
    add_regions,
    blank_outside,
    merge_regions,
    pad_to_multiple,
    partition_regions,
    pool_regions,
    region_means,
)
from mmsparse.ops.routing import route_regions, weigh_routes
from mmsparse.registry import MODELS

PADDINGS = ('input', 'tokens')
ROUTINGS = ('hard', 'soft', 'differentiable', 'projected')
LEPE_SOURCES = ('input', 'values')
POOLS: dict[str, Callable[..., Tensor]] = {
    'avg': F.avg_pool2d,
    'max': F.max_pool2d,
    'adaptive_avg': F.adaptive_avg_pool2d,
    'adaptive_max': F.adaptive_max_pool2d,
}


class Cut(NamedTuple):
    """How a map is cut into regions.

    Args:
        size: Height and width of the map; the last regions may reach beyond.
        region: Height and width of a region.
        grid: Number of regions down and across.
    """

    size: tuple[int, int]
    region: tuple[int, int]
    grid: tuple[int, int]


class Routing(NamedTuple):
    """Which regions of a map attend to which.

    Args:
        grid: Number R of regions, as rows and columns.
        region: Height and width of a region, in cells of the map; the last regions may
            reach beyond it.
        routes: Regions that each region attends to, best first, (B, R, K).
        scores: Softmax of the affinities to these, (B, R, K).
    """

    grid: tuple[int, int]
    region: tuple[int, int]
    routes: Tensor
    scores: Tensor


@MODELS.register_module()
class BiLevelRoutingAttention(nn.Module):
    """Attention of every region to the regions most akin to it.

    The map is cut into ``regions_per_side`` x ``regions_per_side`` regions. Their mean
    queries and mean keys decide which regions attend to which, the same for all heads.
    Products of queries and keys are scaled by the width of all heads together.

    Any height and width works. Where the regions do not divide the map, the official
    code has two forms, and weights belong to the one that they were trained with:

    - ``padding='input'``: the map is padded with zeros, so that the regions fit.
      Padded positions hold the bias of the projection, and take part in everything.
    - ``padding='tokens'``: regions have the height and width of the map over
      ``regions_per_side``, rounded down, and there are as many as it takes. The
      last ones are filled with zero queries, keys and values, which take part in
      the attention, but neither in the means nor in the local convolution.

    Paper: `BiFormer <https://arxiv.org/abs/2303.08810>`_, section 3.2.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels`` and ``qk_channels``.
        topk: Number of regions that each region attends to. At most
            ``regions_per_side`` squared with padding of the input; all regions of a map
            that has fewer with padding of tokens.
        regions_per_side: Number of regions down and across. Not tied to the weights.
        qk_channels: Width of queries and keys; ``in_channels`` if None.
        qk_scale: Factor on the products of queries and keys; ``qk_channels ** -0.5``
            if None.
        lepe_kernel: Odd edge length of the depthwise convolution of the values that
            is added to the output (local context enhancement), 0 for none.
        padding: ``input`` or ``tokens``, see above.
        routing: ``hard`` picks regions and passes no gradient. The others also
            multiply keys and values of a picked region by the softmax of its affinity:
            ``soft`` by constants, ``differentiable`` with gradient, ``projected`` after
            a further linear map of the means as well.
        kv_pool: Pooling of keys and values within every region: None, or a kind and a
            size. ``avg`` and ``max`` pool windows of that edge length (at most the
            region), ``adaptive_avg`` and ``adaptive_max`` to a square of it.
        out_proj: Whether a linear map follows.

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
        _check_kv_pool(kv_pool)
        self.num_heads = num_heads
        self.topk = topk
        self.regions_per_side = regions_per_side
        self.padding = padding
        self.routing = routing
        self.kv_pool = kv_pool
        self.split = (qk_channels, qk_channels, in_channels)
        self.scale = qk_channels**-0.5 if qk_scale is None else qk_scale
        self.qkv = Linear(in_channels, sum(self.split))
        self.router = (
            nn.Linear(qk_channels, qk_channels) if routing == 'projected' else None
        )
        self.lepe = DepthwiseConv2d(in_channels, lepe_kernel) if lepe_kernel else None
        self.proj = Linear(in_channels, in_channels) if out_proj else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        height, width = x.shape[-2:]
        out = self._attend(*self._project(x))
        return channels_first(self.proj(out[:, :height, :width]))

    def regions(self, x: Tensor) -> Routing:
        """Tell which regions of a map attend to which.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.

        Returns:
            The regions and their routes.
        """
        return self._routing(*self._project(x))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Tell where queries look.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.
            queries: Positions of the map, counted row by row, (n,).

        Returns:
            What all heads see. Keys may lie in padding, beyond the map.
        """
        qkv, cut = self._project(x)
        q, k, _ = qkv.split(self.split, dim=-1)
        k, routing = self._pool(k, cut.region), self._routing(qkv, cut)
        (h, w), (rows, columns) = cut.region, cut.grid
        y, x = queries // x.shape[-1], queries % x.shape[-1]
        own = y // h * columns + x // w
        routes = routing.routes[:, own]  # (B, n, K)
        batch = torch.arange(len(k), device=k.device)[:, None, None]
        keys = k[batch, routes]  # (B, n, K, L, D)
        if self.routing != 'hard':
            keys = keys * routing.scores[:, own, :, None, None]
        counts, extent = self._pooled(cut.region)
        length = k.shape[2]
        seen = routes[..., None] * length + torch.arange(length, device=k.device)
        corners = (grid_centers((rows, columns), k) - 0.5) * k.new_tensor([h, w])
        places = corners[:, None] + grid_centers(counts, k, extent)
        return (
            AttentionMap(
                '',
                attend_own_keys(
                    q[:, own, y % h * w + x % w],
                    keys.flatten(2, 3),
                    self.scale,
                    self.num_heads,
                ),
                seen.flatten(2),
                places.flatten(0, 1).expand(len(k), -1, -1),
                extent,
            ),
        )

    def _project(self, x: Tensor) -> tuple[Tensor, Cut]:
        """(B, C, H, W) to queries, keys and values by region, (B, R, L, ...)."""
        x = channels_last(x)
        if self.padding == 'input':
            x = pad_to_multiple(x, (self.regions_per_side, self.regions_per_side))
        size = height, width = x.shape[1:3]
        h, w = region = tuple(max(n // self.regions_per_side, 1) for n in size)
        grid = (-(-height // h), -(-width // w))
        # The map is cut before the projection makes three of it.
        qkv = self.qkv(partition_regions(pad_to_multiple(x, region), grid))
        return blank_outside(qkv, region, size), Cut(size, region, grid)

    def _attend(self, qkv: Tensor, cut: Cut) -> Tensor:
        """Queries, keys and values to (B, H', W', C), padded so that regions fit."""
        q, k, v = qkv.split(self.split, dim=-1)
        routes, route_weights = self._route(qkv, cut)
        out = routed_attention(
            q,
            self._pool(k, cut.region),
            self._pool(v, cut.region),
            routes,
            self.num_heads,
            self.scale,
            route_weights=route_weights,
        )
        padded = (cut.grid[0] * cut.region[0], cut.grid[1] * cut.region[1])
        if self.lepe is None:
            return merge_regions(out, cut.grid, padded)
        height, width = cut.size
        values = merge_regions(v, cut.grid, padded)[:, :height, :width]
        detail = channels_last(self.lepe(channels_first(values)))
        return add_regions(pad_to_multiple(detail, cut.region), out, cut.grid)

    def _route(self, qkv: Tensor, cut: Cut) -> tuple[Tensor, Tensor | None]:
        """Routes and, unless routing is hard, their weights, both (B, R, K)."""
        with no_autocast(qkv):  # a rounded affinity would choose other regions
            query, key = self._descriptors(qkv, cut)
            routes = route_regions(query, key, min(self.topk, key.shape[1]))
            if self.routing == 'hard':
                return routes, None
            return routes, weigh_routes(query, key, routes)

    def _routing(self, qkv: Tensor, cut: Cut) -> Routing:
        routes, scores = self._route(qkv, cut)
        if scores is None:
            with no_autocast(qkv):
                scores = weigh_routes(*self._descriptors(qkv, cut), routes)
        return Routing(cut.grid, cut.region, routes, scores)

    def _descriptors(self, qkv: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        """What the affinities of the regions are products of, (B, R, D) each."""
        means = region_means(qkv[..., : -self.split[2]], cut.region, cut.size)
        query, key = means.split(self.split[:2], dim=-1)
        if self.routing in ('hard', 'soft'):
            query, key = query.detach(), key.detach()
        if self.router is not None:
            query, key = self.router(query), self.router(key)
        return self.scale * query, key

    def _pool(self, tokens: Tensor, region: tuple[int, int]) -> Tensor:
        if self.kv_pool is None:
            return tokens
        kind, length = self.kv_pool
        size = (length, length)
        if not kind.startswith('adaptive'):
            size = tuple(min(length, edge) for edge in region)
        return pool_regions(tokens, region, lambda maps: POOLS[kind](maps, size))

    def _pooled(
        self, region: tuple[int, int]
    ) -> tuple[tuple[int, int], tuple[float, float]]:
        """Keys of a region down and across, and height and width of each, in cells."""
        if self.kv_pool is None:
            return region, (1, 1)
        kind, length = self.kv_pool
        h, w = region
        if kind.startswith('adaptive'):
            return (length, length), (h / length, w / length)
        size = (min(length, h), min(length, w))
        return (h // size[0], w // size[1]), size


@MODELS.register_module()
class FullAttention2d(nn.Module):
    """Attention of every position to every other, in BiFormer's last stage.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        qk_scale: Factor on the products of queries and keys; the width of a head to the
            power of -0.5 if None.
        lepe_kernel: Odd edge length of the depthwise convolution that is added to the
            heads, 0 for none.
        lepe_source: What is convolved: the ``input`` as in most of the published
            models, or the ``values`` as in the routed stages and in ``stl-nchw``.

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``, or ``lepe_source``
            is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        lepe_kernel: int = 5,
        lepe_source: str = 'input',
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        check_choice('lepe_source', lepe_source, LEPE_SOURCES)
        self.num_heads = num_heads
        self.scale = qk_scale
        self.lepe_source = lepe_source
        self.qkv = Linear(in_channels, 3 * in_channels, bias=qkv_bias)
        self.lepe = DepthwiseConv2d(in_channels, lepe_kernel) if lepe_kernel else None
        self.proj = Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = self.qkv(channels_last(x)).chunk(3, dim=-1)  # (B, H, W, C)
        out = attend_map(q, k, v, self.num_heads, scale=self.scale)
        if self.lepe is not None:
            source = x if self.lepe_source == 'input' else channels_first(v)
            out = out + channels_last(self.lepe(source))
        return channels_first(self.proj(out))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Tell where queries look.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.
            queries: Positions of the map, counted row by row, (n,).

        Returns:
            What all heads see.
        """
        q, k, _ = self.qkv(channels_last(x)).flatten(1, 2).chunk(3, dim=-1)
        scale = self.scale
        if scale is None:
            scale = (x.shape[1] // self.num_heads) ** -0.5
        seen = attend_shared_keys(q[:, queries], k, scale, self.num_heads)
        keys = grid_centers(x.shape[-2:], x)
        return (AttentionMap('', *seen, keys.expand(len(x), -1, -1)),)


class ConvMixer2d(nn.Sequential):
    """What BiFormer puts in place of attention where a stage routes to no region.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size=1),
            DepthwiseConv2d(channels, kernel_size=5),
            nn.Conv2d(channels, channels, kernel_size=1),
        )


def check_regions(regions_per_side: int, topk: int, padding: str = 'input') -> None:
    """Raise ValueError unless so many regions can be routed to.

    Args:
        regions_per_side: Number of regions down and across.
        topk: Number of regions to route to.
        padding: What is padded; with ``tokens`` there can be more regions.

    Raises:
        ValueError: There are none, or fewer than ``topk``.
    """
    if regions_per_side < 1:
        raise ValueError(
            f'regions_per_side must be at least 1; got {regions_per_side}.'
        )
    most = regions_per_side**2 if padding == 'input' else topk
    if not 1 <= topk <= most:
        raise ValueError(
            f'topk must be between 1 and the number of regions, {regions_per_side**2} '
            f'(regions_per_side={regions_per_side}); got {topk}.'
        )


def _check_kv_pool(kv_pool: tuple[str, int] | None) -> None:
    if kv_pool is None:
        return
    if len(kv_pool) != 2 or kv_pool[0] not in POOLS or kv_pool[1] < 1:
        raise ValueError(
            f'kv_pool must be None or a kind of {sorted(POOLS)} with a size of at '
            f'least 1, for example ("avg", 2); got {kv_pool!r}.'
        )
