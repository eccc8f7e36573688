"""Attention of regions to given routes, by gathering, masking or a Triton kernel."""

from functools import partial

import torch
from torch import Tensor

from mmsparse.ops._backend import is_symbolic, is_tracing, resolve_backend
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._chunking import chunked_attention
from mmsparse.ops._devices import limit_unless_fits, settings_for
from mmsparse.ops._tuning import fastest_backend
from mmsparse.ops.attention import (
    attention_logits,
    biased_attention,
    full_attention,
    merge_heads,
    split_heads,
)
from mmsparse.ops.regions import (
    Size,
    check_grid,
    merge_by_head,
    merge_regions,
    partition_by_head,
    partition_regions,
)
from mmsparse.ops.triton import is_preferred, require_triton

BACKENDS = ('auto', 'reference', 'gathered', 'masked', 'triton')


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float | None = None,
    route_weights: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Attend from the tokens of every region to all tokens of its routed regions.

    Args:
        q: Queries, (B, H, W, D); H and W are multiples of the grid.
        k: Keys, (B, H', W', D); H' and W' are multiples of the grid.
        v: Values, (B, H', W', C).
        routes: Regions that each region attends to, without duplicates, (B, R, K).
        grid: Number R of regions, (rows, columns).
        num_heads: Number of heads; divides D and C.
        scale: Factor on the dot products of queries and keys; D**-0.5 if None.
        route_weights: Factors on the keys *and* values of each routed region,
            (B, R, K); all 1 if None.
        backend: See :func:`bilevel_routing_attention`.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The grid does not divide the feature maps or ``num_heads`` not D and
            C, or ``backend`` is unknown or cannot compute it.

    Source: BiFormer, arXiv 2303.08810, section 3.2, equations 5 and 6.
    """
    if q.shape[-1] % num_heads or v.shape[-1] % num_heads:
        raise ValueError(
            f'num_heads must divide the channels of q and k, {q.shape[-1]}, and of v, '
            f'{v.shape[-1]}; got {num_heads}.'
        )
    backend = resolve_backend(backend, BACKENDS)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if backend == 'auto':
        is_hard = route_weights is None
        backend = _choose_backend(q, k, routes, num_heads) if is_hard else 'gathered'
    if backend == 'gathered':
        return _gathered(q, k, v, routes, grid, num_heads, scale, route_weights)
    if backend == 'reference':
        return _reference(q, k, v, routes, grid, num_heads, scale, route_weights)
    if route_weights is not None:
        raise ValueError(
            f"backend='{backend}' needs hard routing, without route_weights; use "
            "'gathered' or 'auto'."
        )
    attend = _masked if backend == 'masked' else _triton
    return attend(q, k, v, routes, grid, num_heads, scale)


def _choose_backend(q: Tensor, k: Tensor, routes: Tensor, num_heads: int) -> str:
    """Return the backend of hard routing: as measured, or else as theory has it."""
    regions, num_routes = routes.shape[1:]
    known: tuple[str, ...] = ('gathered', 'masked')
    if is_preferred(q):
        known += ('triton',)
    measured = fastest_backend(
        'routed_attention',
        q,
        known,
        regions=regions,
        tokens=q.shape[1] * q.shape[2] // regions,
        keys=num_routes * (k.shape[1] * k.shape[2] // regions),
        head_dim=q.shape[-1] // num_heads,
    )
    if measured is not None:
        return measured
    # Routes to all regions are full attention, which torch's kernels compute.
    if 'triton' in known and num_routes < regions:
        return 'triton'
    return 'masked' if _suits_mask(k, routes) else 'gathered'


def _suits_mask(k: Tensor, routes: Tensor) -> bool:
    """Return whether logits that are masked cost less than copies of keys."""
    settings = settings_for(k)
    share = routes.shape[-1] / routes.shape[1]
    if share == 1 or share < settings.masked_min_share:
        return share == 1
    height, width = k.shape[1:3]
    if is_symbolic(height, width):
        return False
    return height * width <= settings.masked_max_tokens


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None,
) -> Tensor:
    _, height, width, _ = q.shape
    q, k, v = (partition_regions(x, grid) for x in (q, k, v))
    weights = attention_weights(q, k, routes, num_heads, scale, route_weights)
    v = gather_regions(v, routes, route_weights)
    out = merge_heads(weights.to(v.dtype) @ split_heads(v, num_heads))
    return merge_regions(out, grid, (height, width))


def attention_weights(
    q: Tensor,
    k: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None = None,
) -> Tensor:
    """Compute the attention of every token to the tokens of its routed regions.

    Args:
        q: Queries by region, (B, R, L, D).
        k: Keys by region, (B, R, L', D).
        routes: Regions that each region attends to, (B, R, K).
        num_heads: Number of heads; divides D.
        scale: Factor on the dot products of queries and keys.
        route_weights: Factors on the keys of each routed region, (B, R, K).

    Returns:
        (B, R, heads, L, K * L'), the last axis in the order of the routes; sums to 1.
    """
    q = split_heads(q, num_heads)
    k = split_heads(gather_regions(k, routes, route_weights), num_heads)
    return attention_logits(q, k, scale).softmax(dim=-1)


def gather_regions(
    tokens: Tensor, routes: Tensor, route_weights: Tensor | None = None
) -> Tensor:
    """Gather the tokens of every region's routed regions.

    Args:
        tokens: Tokens by region, (B, R, L, C).
        routes: (B, R, K).
        route_weights: Factors on the tokens of each routed region, (B, R, K).

    Returns:
        (B, R, K * L, C), in the order of the routes.
    """
    index = routes[..., None, None].expand(-1, -1, -1, *tokens.shape[2:])
    source = tokens[:, None].expand(-1, routes.shape[1], -1, -1, -1)
    gathered = source.gather(2, index)  # (B, R, K, L, C)
    if route_weights is not None:
        gathered = gathered * route_weights[..., None, None].to(tokens.dtype)
    return gathered.flatten(2, 3)


def _gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None,
) -> Tensor:
    """Attend to copies of the routed regions, a chunk of query regions at a time."""
    _, height, width, _ = q.shape
    length = _chunk_length(k, v, routes)
    # 1. Partition into regions and heads. Heads come before tokens, or every gathered
    # copy would be copied again for its matrix products.
    q, k, v = (partition_by_head(x, grid, num_heads) for x in (q, k, v))
    # 2. Query regions of all images are chunked together; so are their routes, which
    # count the regions of all images.
    queries: tuple[Tensor, ...] = (q.flatten(0, 1), _batch_routes(routes).flatten(0, 1))
    if route_weights is not None:
        queries = (*queries, route_weights.flatten(0, 1))
    # 3. Every region of a head is one row of the keys, (B * R * heads, L', D).
    shared = (k.flatten(0, 2), v.flatten(0, 2))
    out = chunked_attention(
        partial(_attend_chunk, num_heads, scale), queries, shared, length
    )  # (B * R, heads, L, C / heads)
    # 4. Merge regions and heads.
    return merge_by_head(out.unflatten(0, routes.shape[:2]), grid, (height, width))


def _chunk_length(k: Tensor, v: Tensor, routes: Tensor) -> int:
    """Return the number of query regions of a chunk; the compiler takes all."""
    num_queries = routes.shape[0] * routes.shape[1]
    if is_tracing():
        return num_queries
    numel = k.numel() + v.numel()
    copies = routes.shape[-1] * numel
    limit = limit_unless_fits(settings_for(k).gather_numel, copies, k)
    # Every chunk adds to the gradients of all keys and values: it must not be small
    # compared with them.
    num_chunks = copies // max(limit, 2 * numel)
    return -(-num_queries // max(int(num_chunks), 1))


def _attend_chunk(
    num_heads: int, scale: float, q: Tensor, routes: Tensor, *others: Tensor
) -> Tensor:
    """Attend with the queries of some regions.

    Args:
        num_heads: Number of heads.
        scale: Factor on the dot products of queries and keys.
        q: Queries, (n, heads, L, D).
        routes: Key regions of each query region, counted over the batch, (n, K).
        others: Factors on these, (n, K), if there are any; then keys and values of the
            heads of all regions, (B * R * heads, L', ...).

    Returns:
        (n, heads, L, C).
    """
    *weights, k, v = others
    # Row r * heads + h has head h of region r.
    heads = torch.arange(num_heads, device=routes.device).unsqueeze(-1)
    rows = num_heads * routes.unsqueeze(1) + heads  # (n, heads, K)
    k, v = (_gather_rows(x, rows, *weights) for x in (k, v))  # (n, heads, K * L', ...)
    return biased_attention(q, k, v, scale=scale)


def _batch_routes(routes: Tensor) -> Tensor:
    """Count the regions of routes over all images of the batch, (B, R, K)."""
    return routes + _first_regions(*routes.shape[:2], routes.device)


@cached_by_size
def _first_regions(batch: int, num_regions: int, device: torch.device) -> Tensor:
    """Return the number of the first region of every image, (B, 1, 1)."""
    return num_regions * torch.arange(batch, device=device).view(-1, 1, 1)


def _gather_rows(x: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gather rows (n, heads, K) of (B * R * heads, L, D), to (n, heads, K * L, D)."""
    gathered = x.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    if weights is not None:
        gathered = gathered * weights[:, None, :, None, None].to(x.dtype)
    return gathered.flatten(2, 3)


def _masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float,
) -> Tensor:
    """Attend to all tokens under a mask of those in other regions."""
    bias = None
    if routes.shape[-1] < routes.shape[1]:
        bias = _route_mask(q, k, routes, grid)
    return full_attention(q, k, v, num_heads, bias, scale=scale)


def _route_mask(q: Tensor, k: Tensor, routes: Tensor, grid: Size) -> Tensor:
    """Return 0 for keys in routed regions, -inf for others, (B, 1, H * W, H' * W')."""
    batch, num_regions, _ = routes.shape
    mask = q.new_full((batch, num_regions, num_regions), -torch.inf)
    mask = mask.scatter(-1, routes, 0)  # (B, R, R)
    # Columns before rows: so most elements are copied in whole rows.
    rows, columns = (
        _token_regions(tuple(x.shape[1:3]), grid, x.device) for x in (q, k)
    )
    return mask.index_select(2, columns).index_select(1, rows).unsqueeze(1)


@cached_by_size
def _token_regions(size: Size, grid: Size, device: torch.device) -> Tensor:
    """Return the region of every token of a feature map, row-major, (H * W,)."""
    rows, columns = (
        torch.arange(length, device=device) // (length // count)
        for length, count in zip(size, grid, strict=True)
    )
    return (grid[1] * rows[:, None] + columns).flatten()


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float,
) -> Tensor:
    """Attend by a kernel that reads the routed regions where they are."""
    require_triton(q)
    from mmsparse.ops.triton import routed as kernels

    for x in (q, k, v):
        check_grid(x, grid)
    return kernels.attend(q, k, v, routes, grid, num_heads, scale)
