"""Triton kernels of routed attention, which read the routed regions without a copy.

Nothing of the size of queries times keys is stored. The forward pass is that of
FlashAttention-2 (arXiv 2307.08691), over the keys of one routed region after the other.
The backward pass has one kernel over queries for their gradient and one over keys for
theirs, so that no two programs write to the same memory and results are deterministic.

Import it only where Triton is installed. Its interpreter runs the kernels on a CPU if
TRITON_INTERPRET=1 is set before.
"""
# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmsparse.ops._precision import precise_dtype

MAX_BLOCK = 64  # queries or keys of a block
MIN_BLOCK = 16  # rows and columns of the smallest matrix product


def attend(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Attend from the tokens of every region to those of its routed regions.

    Args:
        q: Queries of all regions of all images, (N, L, D).
        k: Keys, (N, L', D).
        v: Values, (N, L', C).
        routes: Regions that each region attends to, (N, K).
        num_heads: Number of heads; divides D and C.
        scale: Factor on the dot products of queries and keys.

    Returns:
        (N, L, C).
    """
    return _RoutedAttention.apply(q, k, v, routes, num_heads, scale)


class _RoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        routes: Tensor,
        num_heads: int,
        scale: float,
    ) -> Tensor:
        q, k, v, routes = (x.contiguous() for x in (q, k, v, routes))
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        sums = q.new_empty(len(q), num_heads, q.shape[1], dtype=precise_dtype(q))
        sizes = _sizes(q, k, v, routes, num_heads)
        grid = (len(q) * triton.cdiv(q.shape[1], sizes['BLOCK_Q']), num_heads)
        _forward[grid](q, k, v, routes, out, sums, scale, **sizes)
        ctx.save_for_backward(q, k, v, routes, out, sums)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, routes, out, sums = ctx.saved_tensors
        grad = grad.contiguous()
        # 1. Mean over the keys of the gradient of the weights, weighted by them, which
        # the gradient of the softmax subtracts.
        means = (grad * out).unflatten(-1, (ctx.num_heads, -1))
        means = means.sum(-1, dtype=sums.dtype).mT.contiguous()  # (N, heads, L)
        sizes = _sizes(q, k, v, routes, ctx.num_heads)
        shared = (q, k, v, grad, sums, means)

        # 2. The gradient of queries: a program for each block of queries and head.
        grad_q = torch.empty_like(q)
        grid = (len(q) * triton.cdiv(q.shape[1], sizes['BLOCK_Q']), ctx.num_heads)
        _backward_queries[grid](*shared, routes, grad_q, ctx.scale, **sizes)

        # 3. Those of keys and values: a program for each block of keys and head, over
        # the regions that are routed to them.
        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        readers, ends = _readers(routes, len(k))
        grid = (len(k) * triton.cdiv(k.shape[1], sizes['BLOCK_K']), ctx.num_heads)
        _backward_keys[grid](*shared, readers, ends, grad_k, grad_v, ctx.scale, **sizes)
        return grad_q, grad_k, grad_v, None, None, None


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, routes: Tensor, num_heads: int
) -> dict[str, Any]:
    """Return the constants that the kernels are compiled with."""
    key_width, value_width = q.shape[-1] // num_heads, v.shape[-1] // num_heads
    exact = torch.get_float32_matmul_precision() == 'highest'
    return dict(
        QUERIES=q.shape[1],
        KEYS=k.shape[1],
        ROUTES=routes.shape[1],
        HEADS=num_heads,
        KEY_WIDTH=key_width,
        VALUE_WIDTH=value_width,
        BLOCK_Q=min(_block(q.shape[1]), MAX_BLOCK),
        BLOCK_K=min(_block(k.shape[1]), MAX_BLOCK),
        BLOCK_D=_block(key_width),
        BLOCK_C=_block(value_width),
        PRECISION='ieee' if exact else 'tf32',
    )


def _block(length: int) -> int:
    return max(triton.next_power_of_2(length), MIN_BLOCK)


def _readers(routes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Invert routes: list the regions that attend to each region.

    Returns:
        The query regions, sorted by the key region that they attend to, (N * K,), and
        the offsets of the key regions in that list, (count + 1,).
    """
    key_region, order = routes.flatten().sort(stable=True)
    regions = torch.arange(count + 1, device=routes.device)
    return order // routes.shape[1], torch.searchsorted(key_region, regions)


@triton.jit
def _load(
    pointer, region, tokens, head,
    COUNT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a head of some tokens of a region, (tokens, BLOCK); zero outside."""
    channels = tl.arange(0, BLOCK)
    offsets = (region * COUNT + tokens)[:, None] * (HEADS * WIDTH) + head * WIDTH
    inside = (tokens < COUNT)[:, None] & (channels < WIDTH)[None]
    return tl.load(pointer + offsets + channels[None], mask=inside, other=0.0)


@triton.jit
def _store(
    pointer, values, region, tokens, head,
    COUNT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a head of some tokens of a region."""
    channels = tl.arange(0, BLOCK)
    offsets = (region * COUNT + tokens)[:, None] * (HEADS * WIDTH) + head * WIDTH
    inside = (tokens < COUNT)[:, None] & (channels < WIDTH)[None]
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + offsets + channels[None], values, mask=inside)


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    dtype: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=dtype)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, routes_ptr, out_ptr, sums_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the output of a block of queries of a region and a head.

    And the log-sum-exp of their logits, which the backward pass needs.
    """
    # 1. Load the queries of this program.
    blocks = tl.cdiv(QUERIES, BLOCK_Q)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    tokens = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    q = _load(q_ptr, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)

    # 2. Over the keys of the routed regions, block by block: the greatest logit so far,
    # and the sums of weights and of weighted values relative to it.
    dtype = sums_ptr.dtype.element_ty
    top = tl.full([BLOCK_Q], float('-inf'), dtype)
    total = tl.zeros([BLOCK_Q], dtype)
    out = tl.zeros([BLOCK_Q, BLOCK_C], dtype)
    for route in range(ROUTES):
        key_region = tl.load(routes_ptr + region * ROUTES + route)
        for first in range(0, KEYS, BLOCK_K):
            keys = first + tl.arange(0, BLOCK_K)
            k = _load(k_ptr, key_region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
            v = _load(v_ptr, key_region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
            logits = _dot(q, tl.trans(k), PRECISION) * scale
            logits = tl.where((keys < KEYS)[None], logits, float('-inf'))
            # A greater logit rescales the sums so far.
            new_top = tl.maximum(top, tl.max(logits, 1))
            weights = tl.exp(logits - new_top[:, None])
            rescale = tl.exp(top - new_top)
            total = total * rescale + tl.sum(weights, 1)
            out = out * rescale[:, None] + _dot(weights.to(v.dtype), v, PRECISION)
            top = new_top

    # 3. Normalize and store.
    out = out / total[:, None]
    _store(out_ptr, out, region, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C)
    sums = sums_ptr + (region * HEADS + head) * QUERIES + tokens
    tl.store(sums, top + tl.log(total), mask=tokens < QUERIES)


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, sums_ptr, means_ptr, routes_ptr, grad_q_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a block of queries of a region and a head."""
    # 1. Load the queries of this program, and what the forward pass kept of them.
    blocks = tl.cdiv(QUERIES, BLOCK_Q)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    tokens = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    q = _load(q_ptr, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)
    grad = _load(grad_ptr, region, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C)
    offsets = (region * HEADS + head) * QUERIES + tokens
    sums = tl.load(sums_ptr + offsets, mask=tokens < QUERIES, other=0.0)
    means = tl.load(means_ptr + offsets, mask=tokens < QUERIES, other=0.0)

    # 2. Over the keys of the routed regions: the weights again, from the log-sum-exp,
    # and the gradient of the logits, through the softmax.
    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], sums_ptr.dtype.element_ty)
    for route in range(ROUTES):
        key_region = tl.load(routes_ptr + region * ROUTES + route)
        for first in range(0, KEYS, BLOCK_K):
            keys = first + tl.arange(0, BLOCK_K)
            k = _load(k_ptr, key_region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
            v = _load(v_ptr, key_region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
            logits = _dot(q, tl.trans(k), PRECISION) * scale
            logits = tl.where((keys < KEYS)[None], logits, float('-inf'))
            weights = tl.exp(logits - sums[:, None])
            grad_weights = _dot(grad, tl.trans(v), PRECISION)
            grad_logits = weights * (grad_weights - means[:, None])
            grad_q += _dot(grad_logits.to(k.dtype), k, PRECISION)

    # 3. Store.
    grad_q *= scale
    _store(grad_q_ptr, grad_q, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, sums_ptr, means_ptr, readers_ptr, ends_ptr,
    grad_k_ptr, grad_v_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of keys and values of a region and a head."""
    # 1. Load the keys and values of this program.
    blocks = tl.cdiv(KEYS, BLOCK_K)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    keys = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    head = tl.program_id(1)
    k = _load(k_ptr, region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
    v = _load(v_ptr, region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)

    # 2. Over the queries of the regions that attend to them: logits and weights as in
    # the forward pass, transposed.
    dtype = sums_ptr.dtype.element_ty
    grad_k = tl.zeros([BLOCK_K, BLOCK_D], dtype)
    grad_v = tl.zeros([BLOCK_K, BLOCK_C], dtype)
    end = tl.load(ends_ptr + region + 1)
    for i in range(tl.load(ends_ptr + region), end):
        reader = tl.load(readers_ptr + i)
        for first in range(0, QUERIES, BLOCK_Q):
            tokens = first + tl.arange(0, BLOCK_Q)
            q = _load(q_ptr, reader, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)
            grad = _load(
                grad_ptr, reader, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C
            )
            offsets = (reader * HEADS + head) * QUERIES + tokens
            # Queries beyond the region get weights of zero, by an infinite sum.
            valid = tokens < QUERIES
            sums = tl.load(sums_ptr + offsets, mask=valid, other=float('inf'))
            means = tl.load(means_ptr + offsets, mask=valid, other=0.0)
            logits = _dot(k, tl.trans(q), PRECISION) * scale
            weights = tl.exp(logits - sums[None])
            grad_v += _dot(weights.to(grad.dtype), grad, PRECISION)
            grad_weights = _dot(v, tl.trans(grad), PRECISION)
            grad_logits = weights * (grad_weights - means[None])
            grad_k += _dot(grad_logits.to(q.dtype), q, PRECISION)

    # 3. Store.
    grad_k *= scale
    _store(grad_k_ptr, grad_k, region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
    _store(grad_v_ptr, grad_v, region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
