"""Bi-level routing attention: regions attend to their most similar regions (BiFormer).

The mean query and key of every region decide which regions it attends to, the same for
all heads; its queries then attend to the tokens of these regions.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._precision import no_autocast
from mmsparse.ops.regions import (
    Size,
    crop,
    pad_to_multiple,
    pool_regions,
    region_layout,
    region_means,
)
from mmsparse.ops.routed import routed_attention

ROUTINGS = ('hard', 'soft', 'differentiable')
POOLS: dict[str, Callable[[Tensor, Size], Tensor]] = {
    'avg': F.avg_pool2d,
    'max': F.max_pool2d,
    'adaptive_avg': F.adaptive_avg_pool2d,
    'adaptive_max': F.adaptive_max_pool2d,
}


class Routing(NamedTuple):
    """Which regions of a feature map attend to which.

    Args:
        grid: Number R of regions, (rows, columns).
        region: Height and width of a region, in tokens; the last regions may reach
            beyond the feature map.
        routes: Regions that each region attends to, best first, (B, R, K).
        scores: Softmax of the affinities to these, (B, R, K), float32 at least.
    """

    grid: Size
    region: Size
    routes: Tensor
    scores: Tensor


def bilevel_routing_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    topk: int,
    regions_per_side: int,
    scale: float | None = None,
    routing: str = 'hard',
    router: Callable[[Tensor], Tensor] | None = None,
    kv_pool: tuple[str, int] | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Attend from the tokens of every region to those of its most similar regions.

    Regions have the size of the feature map over ``regions_per_side``, rounded down.
    Where they do not divide it, the last ones are filled with zero queries, keys and
    values, which take part in the attention, but not in the routing.

    Args:
        q: Queries, (B, H, W, D).
        k: Keys, (B, H, W, D).
        v: Values, (B, H, W, C).
        num_heads: Number of heads; divides D and C.
        topk: Number of regions that each region attends to, at least 1; all of them
            where a feature map has fewer.
        regions_per_side: Number of regions down and across.
        scale: Factor on the dot products of queries and keys, and on the affinities of
            regions; D**-0.5 if None. (That of all heads together, as BiFormer was
            trained.)
        routing: ``hard`` selects regions. The others multiply keys and values of a
            selected region by its score, too: ``soft`` by a constant,
            ``differentiable`` with gradient.
        router: Maps the mean queries, and the mean keys, (B, R, D), before their
            affinity is computed; None for identity.
        kv_pool: Pooling of keys and values within every region, see
            :func:`check_pool`; None for none.
        backend: ``reference``; ``gathered``, which copies the keys of routed regions;
            ``masked``, full attention under a mask, and ``triton``, kernels for GPUs
            (these two for hard routing only); or ``auto``: the fastest one of those
            measured on the device, or else, from an Ampere GPU on, ``triton``, unless
            all regions are routed.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: An argument is unknown or out of range, the heads do not divide D
            and C, or ``backend`` cannot compute it.

    Source: BiFormer, arXiv 2303.08810, section 3.2.
    """
    if routing not in ROUTINGS:
        raise ValueError(f'routing must be one of {ROUTINGS}; got {routing!r}.')
    check_pool(kv_pool)
    # 1. Route: compute which regions attend to which.
    described = (q, k) if routing == 'differentiable' else (q.detach(), k.detach())
    routed = route(*described, topk, regions_per_side, scale, router)
    # 2. Fill the last regions with zeros.
    height, width = q.shape[1:3]
    q, k, v = (pad_to_multiple(x, routed.region) for x in (q, k, v))
    # 3. Pool keys and values within their regions.
    k, v = (pool_keys(x, routed.grid, kv_pool) for x in (k, v))
    # 4. Attend within the routes.
    weights = None if routing == 'hard' else routed.scores
    out = routed_attention(
        q, k, v, routed.routes, routed.grid, num_heads, scale, weights, backend
    )
    # 5. Crop the padding.
    return crop(out, (height, width))


def route(
    q: Tensor,
    k: Tensor,
    topk: int,
    regions_per_side: int,
    scale: float | None = None,
    router: Callable[[Tensor], Tensor] | None = None,
) -> Routing:
    """Select the regions that each region attends to, without autocast.

    Args:
        q: Queries, (B, H, W, D).
        k: Keys, (B, H, W, D).
        topk: Number of regions to select, at least 1; all of them where there are
            fewer.
        regions_per_side: Number of regions down and across.
        scale: Factor on the affinities; D**-0.5 if None.
        router: Maps the mean queries, and the mean keys, (B, R, D), before their
            affinity is computed; None for identity.

    Returns:
        The routing.

    Raises:
        ValueError: ``topk`` or ``regions_per_side`` is less than 1.

    Source: BiFormer, arXiv 2303.08810, section 3.2, equations 3 and 4.
    """
    if topk < 1:
        raise ValueError(f'topk must be at least 1; got {topk}.')
    _, height, width, _ = q.shape
    region, grid = region_layout((height, width), regions_per_side)
    with no_autocast(q):  # rounded affinities would select other regions
        affinity = region_affinity(
            region_means(q, region), region_means(k, region), scale, router
        )
        best = affinity.topk(min(topk, affinity.shape[-1]), dim=-1)
        return Routing(grid, region, best.indices, best.values.softmax(dim=-1))


def region_affinity(
    query: Tensor,
    key: Tensor,
    scale: float | None = None,
    router: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Compute the affinity of every region to every region.

    Args:
        query: Mean query of every region, (B, R, D).
        key: Mean key of every region, (B, R, D).
        scale: Factor on the affinities; D**-0.5 if None.
        router: Maps queries and keys, (B, R, D), before; None for identity.

    Returns:
        (B, R, R), query regions before key regions.
    """
    if scale is None:
        scale = query.shape[-1] ** -0.5
    if router is not None:
        query, key = router(query), router(key)
    return scale * query @ key.transpose(-2, -1)


def check_pool(kv_pool: tuple[str, int] | None) -> None:
    """Raise ValueError unless a pooling of keys and values is known.

    Args:
        kv_pool: None, or a type and a size: ``avg`` and ``max`` pool windows of that
            height and width (at most the region's), ``adaptive_avg`` and
            ``adaptive_max`` pool a region to that height and width.

    Raises:
        ValueError: The type is unknown, or the size less than 1.
    """
    if kv_pool is None:
        return
    if len(kv_pool) != 2 or kv_pool[0] not in POOLS or kv_pool[1] < 1:
        raise ValueError(
            f'kv_pool must be None or one of {sorted(POOLS)} and a size of at least 1, '
            f'for example ("avg", 2); got {kv_pool!r}.'
        )


def pool_keys(x: Tensor, grid: Size, kv_pool: tuple[str, int] | None) -> Tensor:
    """Pool keys or values within every region.

    Args:
        x: Keys or values, (B, H, W, C), multiples of the grid.
        grid: Number of regions, (rows, columns).
        kv_pool: Type and size, see :func:`check_pool`; None for none.

    Returns:
        (B, H', W', C), multiples of the grid.
    """
    if kv_pool is None:
        return x
    name, length = kv_pool
    size = (length, length)
    if not name.startswith('adaptive'):
        size = (min(length, x.shape[1] // grid[0]), min(length, x.shape[2] // grid[1]))
    return pool_regions(x, grid, lambda regions: POOLS[name](regions, size))
