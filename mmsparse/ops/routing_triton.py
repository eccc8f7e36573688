"""Routed attention for GPUs: Triton kernels that read routed regions in their places.

Nothing is copied, and nothing of the size of queries times keys is kept: forward as in
FlashAttention-2 (arXiv 2307.08691), the keys being those of one routed region after the
other; backward by queries for their gradient, and by keys for theirs, so that no two
programs write to one place and results do not depend on their order.

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

MOST_TOKENS = 64  # queries or keys that a program holds at a time
LEAST = 16  # rows and columns of the smallest product of matrices


def attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Let the tokens of every region attend to those of its routed regions.

    Args:
        q: Queries of all regions of all images, (N, L, D).
        k: Keys, (N, L', D).
        v: Values, (N, L', C).
        rows: Regions of keys that each region attends to, (N, K).
        num_heads: Number of heads; divides D and C.
        scale: Factor on the products of queries and keys.

    Returns:
        (N, L, C).
    """
    return _RoutedAttention.apply(q, k, v, rows, num_heads, scale)


class _RoutedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        rows: Tensor,
        num_heads: int,
        scale: float,
    ) -> Tensor:
        q, k, v, rows = (x.contiguous() for x in (q, k, v, rows))
        out = q.new_empty(*q.shape[:2], v.shape[-1])
        sums = q.new_empty(len(q), num_heads, q.shape[1], dtype=_precise(q))
        sizes = _sizes(q, k, v, rows, num_heads)
        grid = (len(q) * triton.cdiv(q.shape[1], sizes['BLOCK_Q']), num_heads)
        _forward[grid](q, k, v, rows, out, sums, scale, **sizes)
        ctx.save_for_backward(q, k, v, rows, out, sums)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, rows, out, sums = ctx.saved_tensors
        grad = grad.contiguous()
        products = (grad * out).unflatten(-1, (ctx.num_heads, -1))
        means = products.sum(-1, dtype=sums.dtype).mT.contiguous()  # (N, heads, L)
        sizes = _sizes(q, k, v, rows, ctx.num_heads)
        shared = (q, k, v, grad, sums, means)

        grad_q = torch.empty_like(q)
        grid = (len(q) * triton.cdiv(q.shape[1], sizes['BLOCK_Q']), ctx.num_heads)
        _backward_queries[grid](*shared, rows, grad_q, ctx.scale, **sizes)

        grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)
        readers, ends = _readers(rows, len(k))
        grid = (len(k) * triton.cdiv(k.shape[1], sizes['BLOCK_K']), ctx.num_heads)
        _backward_keys[grid](*shared, readers, ends, grad_k, grad_v, ctx.scale, **sizes)
        return grad_q, grad_k, grad_v, None, None, None


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, num_heads: int
) -> dict[str, Any]:
    """What the kernels are compiled for."""
    key_width, value_width = q.shape[-1] // num_heads, v.shape[-1] // num_heads
    return dict(
        QUERIES=q.shape[1],
        KEYS=k.shape[1],
        ROUTES=rows.shape[1],
        HEADS=num_heads,
        KEY_WIDTH=key_width,
        VALUE_WIDTH=value_width,
        BLOCK_Q=min(_power(q.shape[1]), MOST_TOKENS),
        BLOCK_K=min(_power(k.shape[1]), MOST_TOKENS),
        BLOCK_D=_power(key_width),
        BLOCK_C=_power(value_width),
        ROUNDED='ieee' if torch.get_float32_matmul_precision() == 'highest' else 'tf32',
    )


def _power(length: int) -> int:
    return max(triton.next_power_of_2(length), LEAST)


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _readers(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Regions of queries in the order of the region that they read, and its ends."""
    read, order = rows.flatten().sort(stable=True)
    ends = torch.searchsorted(read, torch.arange(count + 1, device=rows.device))
    return order // rows.shape[1], ends


@triton.jit
def _load(
    pointer, region, tokens, head,
    COUNT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Tokens of a region, one head of them, (tokens, BLOCK); zero outside."""
    channels = tl.arange(0, BLOCK)
    places = (region * COUNT + tokens)[:, None] * (HEADS * WIDTH) + head * WIDTH
    inside = (tokens < COUNT)[:, None] & (channels < WIDTH)[None]
    return tl.load(pointer + places + channels[None], mask=inside, other=0.0)


@triton.jit
def _store(
    pointer, values, region, tokens, head,
    COUNT: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The inverse of _load."""
    channels = tl.arange(0, BLOCK)
    places = (region * COUNT + tokens)[:, None] * (HEADS * WIDTH) + head * WIDTH
    inside = (tokens < COUNT)[:, None] & (channels < WIDTH)[None]
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + places + channels[None], values, mask=inside)


@triton.jit
def _multiply(a, b, ROUNDED: tl.constexpr):
    precise: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, b, input_precision=ROUNDED, out_dtype=precise)


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, rows_ptr, out_ptr, sums_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """A block of queries of a region and a head: their output, and log-sum-exp."""
    blocks = tl.cdiv(QUERIES, BLOCK_Q)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    tokens = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    q = _load(q_ptr, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)

    precise = sums_ptr.dtype.element_ty
    largest = tl.full([BLOCK_Q], float('-inf'), precise)
    total = tl.zeros([BLOCK_Q], precise)
    out = tl.zeros([BLOCK_Q, BLOCK_C], precise)
    for route in range(ROUTES):
        read = tl.load(rows_ptr + region * ROUTES + route)
        for first in range(0, KEYS, BLOCK_K):
            keys = first + tl.arange(0, BLOCK_K)
            k = _load(k_ptr, read, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
            v = _load(v_ptr, read, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
            logits = _multiply(q, tl.trans(k), ROUNDED) * scale
            logits = tl.where((keys < KEYS)[None], logits, float('-inf'))
            new = tl.maximum(largest, tl.max(logits, 1))
            weights = tl.exp(logits - new[:, None])
            shrunk = tl.exp(largest - new)
            total = total * shrunk + tl.sum(weights, 1)
            out = out * shrunk[:, None] + _multiply(weights.to(v.dtype), v, ROUNDED)
            largest = new

    out = out / total[:, None]
    _store(out_ptr, out, region, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C)
    sums = sums_ptr + (region * HEADS + head) * QUERIES + tokens
    tl.store(sums, largest + tl.log(total), mask=tokens < QUERIES)


@triton.jit
def _backward_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, sums_ptr, means_ptr, rows_ptr, grad_q_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """The gradient of a block of queries, from the keys that they read."""
    blocks = tl.cdiv(QUERIES, BLOCK_Q)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    tokens = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    head = tl.program_id(1)
    q = _load(q_ptr, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)
    grad = _load(grad_ptr, region, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C)
    places = (region * HEADS + head) * QUERIES + tokens
    sums = tl.load(sums_ptr + places, mask=tokens < QUERIES, other=0.0)
    means = tl.load(means_ptr + places, mask=tokens < QUERIES, other=0.0)

    precise = sums_ptr.dtype.element_ty
    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], precise)
    for route in range(ROUTES):
        read = tl.load(rows_ptr + region * ROUTES + route)
        for first in range(0, KEYS, BLOCK_K):
            keys = first + tl.arange(0, BLOCK_K)
            k = _load(k_ptr, read, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
            v = _load(v_ptr, read, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
            logits = _multiply(q, tl.trans(k), ROUNDED) * scale
            logits = tl.where((keys < KEYS)[None], logits, float('-inf'))
            weights = tl.exp(logits - sums[:, None])
            steps = weights * (_multiply(grad, tl.trans(v), ROUNDED) - means[:, None])
            grad_q += _multiply(steps.to(k.dtype), k, ROUNDED)

    grad_q *= scale
    _store(grad_q_ptr, grad_q, region, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)


@triton.jit
def _backward_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, sums_ptr, means_ptr, readers_ptr, ends_ptr,
    grad_k_ptr, grad_v_ptr, scale,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, ROUTES: tl.constexpr,
    HEADS: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, ROUNDED: tl.constexpr,
):  # fmt: skip
    """The gradients of a block of keys and values, from the queries that read them."""
    blocks = tl.cdiv(KEYS, BLOCK_K)
    region = (tl.program_id(0) // blocks).to(tl.int64)
    keys = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    head = tl.program_id(1)
    k = _load(k_ptr, region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
    v = _load(v_ptr, region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)

    precise = sums_ptr.dtype.element_ty
    grad_k = tl.zeros([BLOCK_K, BLOCK_D], precise)
    grad_v = tl.zeros([BLOCK_K, BLOCK_C], precise)
    end = tl.load(ends_ptr + region + 1)
    for place in range(tl.load(ends_ptr + region), end):
        reader = tl.load(readers_ptr + place)
        for first in range(0, QUERIES, BLOCK_Q):
            tokens = first + tl.arange(0, BLOCK_Q)
            q = _load(q_ptr, reader, tokens, head, QUERIES, HEADS, KEY_WIDTH, BLOCK_D)
            grad = _load(
                grad_ptr, reader, tokens, head, QUERIES, HEADS, VALUE_WIDTH, BLOCK_C
            )
            places = (reader * HEADS + head) * QUERIES + tokens
            # Tokens that are not there weigh nothing.
            sums = tl.load(sums_ptr + places, mask=tokens < QUERIES, other=float('inf'))
            means = tl.load(means_ptr + places, mask=tokens < QUERIES, other=0.0)
            logits = _multiply(k, tl.trans(q), ROUNDED) * scale
            weights = tl.exp(logits - sums[None])
            grad_v += _multiply(weights.to(grad.dtype), grad, ROUNDED)
            steps = weights * (_multiply(v, tl.trans(grad), ROUNDED) - means[None])
            grad_k += _multiply(steps.to(q.dtype), q, ROUNDED)

    grad_k *= scale
    _store(grad_k_ptr, grad_k, region, keys, head, KEYS, HEADS, KEY_WIDTH, BLOCK_D)
    _store(grad_v_ptr, grad_v, region, keys, head, KEYS, HEADS, VALUE_WIDTH, BLOCK_C)
