"""Attention limited to the regions that a query region routes to (BiFormer)."""

import os
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from mmsparse.ops._backend import is_compiling, pick_backend
from mmsparse.ops._chunking import chunked_attention
from mmsparse.ops.attention import (
    attention_logits,
    biased_attention,
    merge_heads,
    split_heads,
)

BACKENDS = ('auto', 'reference', 'gathered', 'masked', 'triton')
UNWEIGHTED = ('masked', 'triton')  # know no factors on the routed regions
# Up to so many tokens, and from this share of the regions on, full attention under a
# mask trains faster than copies of keys: measured on a CPU, it took 0.4 of the time at
# 196 tokens and a third, and at 256 and a quarter; twice it at 400 and a quarter.
MASKED_TOKENS = 256
MASKED_SHARE = 1 / 4
PART = 2**23  # numbers in the copies of keys and values that are there at a time


def route_regions(query: Tensor, key: Tensor, topk: int) -> Tensor:
    """Pick the key regions that each query region attends to.

    Args:
        query: Descriptor of every query region, for example its mean, (B, R, D).
        key: Descriptor of every key region, (B, R, D).
        topk: Number of regions to keep, 1 to R.

    Returns:
        Indices of the kept regions, best first, (B, R, topk).

    Raises:
        ValueError: ``topk`` is outside 1 to R.

    Source: BiFormer, arXiv 2303.08810, section 3.2, equations 3 and 4.
    """
    num_regions = key.shape[1]
    if not 1 <= topk <= num_regions:
        raise ValueError(
            f'topk must be between 1 and the number of regions, {num_regions}; '
            f'got {topk}.'
        )
    affinity = query @ key.transpose(-2, -1)
    return affinity.topk(topk, dim=-1).indices


def weigh_routes(query: Tensor, key: Tensor, routes: Tensor) -> Tensor:
    """Weigh the kept regions against each other (soft routing).

    Args:
        query: Descriptor of every query region, (B, R, D).
        key: Descriptor of every key region, (B, R, D).
        routes: Indices of the kept regions, (B, R, K).

    Returns:
        Softmax of the affinities to the kept regions, (B, R, K).
    """
    affinity = query @ key.transpose(-2, -1)
    return affinity.gather(-1, routes).softmax(dim=-1)


def routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float | None = None,
    backend: str = 'auto',
    route_weights: Tensor | None = None,
) -> Tensor:
    """Let the tokens of every region attend to all tokens of its routed regions.

    Args:
        q: Queries, (B, R, L, D).
        k: Keys, (B, R, L', D).
        v: Values, (B, R, L', C).
        routes: Regions that each region attends to, (B, R, K), each but once, as
            :func:`route_regions` returns them.
        num_heads: Number of heads; divides D and C.
        scale: Factor on the products of queries and keys; D**-0.5 if None. (The
            width of all heads together, as BiFormer was trained.)
        backend: How to compute it: ``reference``, ``gathered``, ``masked`` or
            ``triton`` (these two not with ``route_weights``), or ``auto``, which does
            not choose ``triton``: it is for GPUs, and was measured on none yet.
        route_weights: Factors on the keys *and* values of each routed region,
            (B, R, K), as :func:`weigh_routes` returns them; all 1 if None.

    Returns:
        (B, R, L, C).

    Raises:
        ValueError: ``num_heads`` does not divide D and C, or ``backend`` is unknown or
            cannot take ``route_weights`` or run here.

    Source: BiFormer, arXiv 2303.08810, section 3.2, equations 5 and 6.
    """
    if q.shape[-1] % num_heads or v.shape[-1] % num_heads:
        raise ValueError(
            f'num_heads={num_heads} must divide the width of q and k '
            f'({q.shape[-1]}) and of v ({v.shape[-1]}).'
        )
    backend = pick_backend(backend, BACKENDS)
    if backend in UNWEIGHTED and route_weights is not None:
        raise ValueError(
            f"backend='{backend}' takes no route_weights; use 'gathered' or 'auto'."
        )
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if backend == 'reference':
        return _reference(q, k, v, routes, num_heads, scale, route_weights)
    if backend == 'auto' and route_weights is None and _suits_mask(k, routes):
        backend = 'masked'
    if backend == 'masked':
        return _masked(q, k, v, routes, num_heads, scale)
    if backend == 'triton':
        regions = (x.flatten(0, 1) for x in (q, k, v, _rows(routes)))
        out = _kernels(q).attend(*regions, num_heads, scale)
        return out.unflatten(0, routes.shape[:2])
    return _gathered(q, k, v, routes, num_heads, scale, route_weights)


def _suits_mask(k: Tensor, routes: Tensor) -> bool:
    """Whether not to gather pays for products with keys that do not count."""
    num_regions, num_tokens = k.shape[1], k.shape[1] * k.shape[2]
    share = routes.shape[-1] / num_regions
    return share == 1 or (share >= MASKED_SHARE and num_tokens <= MASKED_TOKENS)


def _reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None,
) -> Tensor:
    weights = attention_weights(q, k, routes, num_heads, scale, route_weights)
    v = gather_regions(v, routes, route_weights)
    return merge_heads(weights.to(v.dtype) @ split_heads(v, num_heads))


def attention_weights(
    q: Tensor,
    k: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None = None,
) -> Tensor:
    """Weights by which every token attends to the tokens of its routed regions.

    Args:
        q: Queries, (B, R, L, D).
        k: Keys, (B, R, L', D).
        routes: Regions that each region attends to, (B, R, K).
        num_heads: Number of heads; divides D.
        scale: Factor on the products of queries and keys.
        route_weights: Factors on the keys of each routed region, (B, R, K).

    Returns:
        (B, R, heads, L, K * L'), the last axis in the order of the routes; sums to 1.
    """
    q = split_heads(q, num_heads)
    k = split_heads(gather_regions(k, routes, route_weights), num_heads)
    return attention_logits(q, k, scale).softmax(dim=-1)


def _gathered(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    num_heads: int,
    scale: float,
    route_weights: Tensor | None,
) -> Tensor:
    """Copy whole regions of a head as rows, for so many query regions as fit."""
    queries: tuple[Tensor, ...] = (q.flatten(0, 1), _rows(routes).flatten(0, 1))
    if route_weights is not None:
        queries = (*queries, route_weights.flatten(0, 1))
    # Heads first: else every copy would have to be copied again for its products.
    regions = tuple(split_heads(x, num_heads).flatten(0, 2) for x in (k, v))
    out = chunked_attention(
        partial(_attend_regions, num_heads, scale),
        queries,
        regions,
        length=_length(queries[0].shape[0], routes.shape[-1], k, v),
    )
    return out.unflatten(0, routes.shape[:2])


def _length(num_queries: int, topk: int, k: Tensor, v: Tensor) -> int:
    """Number of query regions that attend at a time; the compiler takes all."""
    if is_compiling():
        return num_queries
    numbers = k.numel() + v.numel()
    # A part adds to the gradients of all regions: it must not be small beside them.
    parts = topk * numbers // max(PART, 2 * numbers)
    return -(-num_queries // max(parts, 1))


def _attend_regions(
    num_heads: int, scale: float, q: Tensor, rows: Tensor, *others: Tensor
) -> Tensor:
    """Let some query regions attend.

    Args:
        num_heads: Number of heads.
        scale: Factor on the products of queries and keys.
        q: (N, L, D).
        rows: Regions of keys that each attends to, (N, K).
        others: Factors on these, (N, K), if there are any; then keys and values of the
            heads of all regions, (B * R * heads, L', ...).

    Returns:
        (N, L, C).
    """
    *weights, k, v = others
    heads = torch.arange(num_heads, device=rows.device).unsqueeze(-1)
    rows = num_heads * rows.unsqueeze(1) + heads  # (N, heads, K)
    k, v = (_take(x, rows, *weights) for x in (k, v))
    return merge_heads(biased_attention(split_heads(q, num_heads), k, v, scale=scale))


def _masked(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Attend to all tokens, but those of other regions count nothing."""
    shape = q.shape[:3]
    q, k, v = (
        split_heads(tokens.flatten(1, 2), num_heads) for tokens in (q, k, v)
    )  # (B, heads, R * L, width)
    bias = None
    if routes.shape[-1] < shape[1]:
        bias = _routes_bias(q, k, routes)
    out = biased_attention(q, k, v, bias, scale=scale)
    return merge_heads(out).reshape(*shape, -1)


def _routes_bias(q: Tensor, k: Tensor, routes: Tensor) -> Tensor:
    """Zero for the tokens of routed regions and -inf for others, (B, 1, N, N')."""
    batch, num_regions, _ = routes.shape
    bias = q.new_full((batch, num_regions, num_regions), -torch.inf)
    bias = bias.scatter(-1, routes, 0)
    lengths = (q.shape[-2] // num_regions, k.shape[-2] // num_regions)
    bias = bias[:, :, None, :, None].expand(-1, -1, lengths[0], -1, lengths[1])
    return bias.reshape(batch, 1, q.shape[-2], k.shape[-2])


def _kernels(q: Tensor) -> ModuleType:
    """The kernels for GPUs, if they can run."""
    if not q.is_cuda and os.environ.get('TRITON_INTERPRET') != '1':
        raise ValueError(
            f"backend='triton' needs tensors on a GPU; got q on {q.device}. Use "
            "'auto', or start with TRITON_INTERPRET=1 to try it on a CPU, slowly."
        )
    try:
        import mmsparse.ops.routing_triton as kernels
    except ModuleNotFoundError as error:
        raise ValueError(
            f"backend='triton' needs {error.name}, which comes with torch for CUDA; "
            "use 'auto' without it."
        ) from error
    return kernels


def gather_regions(
    tokens: Tensor, routes: Tensor, route_weights: Tensor | None = None
) -> Tensor:
    """Line up the tokens of every region's routed regions.

    Args:
        tokens: (B, R, L, C).
        routes: (B, R, K).
        route_weights: Factors on the tokens of each routed region, (B, R, K).

    Returns:
        (B, R, K * L, C), in the order of the routes.
    """
    index = routes[..., None, None].expand(-1, -1, -1, *tokens.shape[2:])
    seen = tokens[:, None].expand(-1, routes.shape[1], -1, -1, -1)
    gathered = seen.gather(2, index)  # (B, R, K, L, C)
    if route_weights is not None:
        gathered = gathered * route_weights[..., None, None].to(tokens.dtype)
    return gathered.flatten(2, 3)


def _rows(routes: Tensor) -> Tensor:
    """Count the regions of all pictures through, (B, R, K)."""
    batch, num_regions, _ = routes.shape
    first = num_regions * torch.arange(batch, device=routes.device)
    return routes + first.view(-1, 1, 1)


def _take(regions: Tensor, rows: Tensor, weights: Tensor | None = None) -> Tensor:
    """Regions of heads by their numbers (N, heads, K), to (N, heads, K * L, d)."""
    taken = regions.index_select(0, rows.flatten()).unflatten(0, rows.shape)
    if weights is not None:
        taken = taken * weights[:, None, :, None, None].to(taken.dtype)
    return taken.flatten(2, 3)
