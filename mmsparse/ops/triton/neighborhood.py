"""Triton kernels of neighborhood attention, which read keys and values in place.

A program computes a tile of queries of an image and a head. The neighbors of a tile are
a patch of keys, which it reads block by block; a block is a rectangle, too. Nothing of
the size of queries times keys is stored.

Bias and mask of a tile and a block are matrix products. A pair of a query and a key has
an entry of the table by its rows and one by its columns. With these entries one-hot,
(pairs of rows, entries) @ table @ (entries, pairs of columns) is the bias of all pairs;
it is exact, takes few instructions, and its transpose sums the table's gradient. Rows
or columns that are not near have an entry beyond the table, where the lowest logits
are.

The softmax is that of FlashAttention-2 (arXiv 2307.08691). The backward pass has one
kernel over tiles of queries, for their gradient and the table's, and one over tiles of
keys, for theirs and the values'. No two programs write to the same memory, so that
results of one launch are deterministic.

Import it only where Triton is installed. Its interpreter runs the kernels on a CPU if
TRITON_INTERPRET=1 is set before.
"""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.triton._common import (
    LOG2_E,
    block_size,
    dot,
    dot_precision,
    launch_fastest,
    load_rows,
    store_rows,
    token_matrix,
)

SIZES = ['height', 'width']  # not compiled in: images of all sizes run the same kernels
# Partial sums of the table's gradient: 1 MiB a head for kernels of up to 8.
MAX_PARTIALS = 1024
# Logits that no pair has, but finite: zero times infinity is NaN.
LOWEST = tl.constexpr(-1e30)


class Launch(NamedTuple):
    """Sizes of rectangles, powers of 2, and launch settings of a kernel.

    Args:
        tile: Rows and columns of the tokens that a program computes.
        block: Those of the tokens that a step of its loop reads.
        num_warps: Warps of a program.
        num_stages: Steps that overlap in the pipeline, loads ahead of products.
    """

    tile: tuple[int, int]
    block: tuple[int, int]
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """Return them as the kernels name them."""
        names = ('TILE_Y', 'TILE_X', 'BLOCK_Y', 'BLOCK_X')
        sizes = dict(zip(names, (*self.tile, *self.block), strict=True))
        return sizes | dict(num_warps=self.num_warps, num_stages=self.num_stages)


# Theory, not measured, for 7 x 7 neighbors and heads of 32 channels. A tile of 8 x 8
# needs a patch of 14 x 14, four blocks of 4 x 16, so that a fifth of the logits are
# those of neighbors. Smaller blocks need fewer registers; smaller tiles fill a GPU with
# small feature maps, but they read keys 6 instead of 4 times.
LAUNCHES = (
    Launch((8, 8), (4, 16), num_warps=4, num_stages=2),
    Launch((8, 8), (2, 16), num_warps=4, num_stages=2),
    Launch((4, 8), (4, 8), num_warps=2, num_stages=2),
)
# Bytes of keys and values of a block, with the copies of the pipeline. With more, the
# compiled kernels spill registers.
MAX_BLOCK_BYTES = 24 * 1024


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Attend from every token to its neighbors.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        table: Relative position bias, (heads, 2 * kernel - 1, 2 * kernel - 1).

    Returns:
        (B, H, W, C).
    """
    return _attend(q, k.to(q.dtype), v.to(q.dtype), table)[0]


@torch.library.custom_op('mmsparse::neighborhood_attention', mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output, and the log-sum-exp of the logits, (B, heads, H * W)."""
    out, sums = _empty_outputs(q, k, v, table)
    arguments = _shared_arguments(table, q=q, k=k, v=v)
    _run_over_tiles(_forward, arguments | dict(out_ptr=out, sums_ptr=sums), q)
    return out, sums


@_attend.register_fake
def _empty_outputs(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = q.shape
    sums = q.new_empty(batch, len(table), height * width, dtype=precise_dtype(q))
    return q.new_empty(q.shape), sums


@torch.library.custom_op('mmsparse::neighborhood_attention_backward', mutates_args=())
def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys, values and table."""
    grad_q, grad_k, grad_v, _ = _empty_gradients(grad, q, k, v, table, out, sums)
    arguments = _shared_arguments(table, q=q, k=k, v=v, grad=grad)
    # The kernel over queries stores the means that the one over keys reads.
    arguments |= dict(sums_ptr=sums, means_ptr=torch.empty_like(sums))

    # 1. The gradients of queries and table. A program has several tiles if there are
    # many, so that the partial sums of the table's gradient take little memory.
    batch, heads, span = q.shape[0], *table.shape[:2]
    count = min(batch * max(_num_tiles(q, x) for x in LAUNCHES), MAX_PARTIALS)
    side = arguments['SIDE']
    partial = sums.new_empty(count, heads, side, side)
    pointers = dict(out_ptr=out, grad_q_ptr=grad_q, partial_ptr=partial)
    counts = dict(images=batch, partials=count)
    _run(_backward_queries, arguments | pointers | counts, q, lambda _: count * heads)
    grad_table = partial.sum(0)[:, :span, :span].to(table.dtype).contiguous()

    # 2. Those of keys and values.
    pointers = dict(grad_k_ptr=grad_k, grad_v_ptr=grad_v)
    _run_over_tiles(_backward_keys, arguments | pointers, q)
    return grad_q, grad_k, grad_v, grad_table


@_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v = (q.new_empty(q.shape) for _ in range(3))
    return grad_q, grad_k, grad_v, table.new_empty(table.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, ...]:
    return _backward(grad, *ctx.saved_tensors)


_attend.register_autograd(_differentiate, setup_context=_save)


def _shared_arguments(table: Tensor, **tensors: Tensor) -> dict[str, Any]:
    """Return what all kernels take: tensors, their strides, and sizes."""
    q = tensors['q']
    _, height, width, channels = q.shape
    head_channels = channels // len(table)
    matrices = {name: token_matrix(x) for name, x in tensors.items()}
    return dict(
        **{f'{name}_ptr': x for name, x in matrices.items()},
        **{f'{name}_stride': x.stride(0) for name, x in matrices.items()},
        table_ptr=table.contiguous(),
        height=height,
        width=width,
        HEADS=len(table),
        CHANNELS=head_channels,
        SCALE=head_channels**-0.5,
        KERNEL=(table.shape[-1] + 1) // 2,
        SIDE=block_size(table.shape[-1] + 1),  # with an entry beyond the table
        BLOCK_C=block_size(head_channels),
        PRECISION=_precision(q),
    )


def _precision(q: Tensor) -> str:
    """Return how matrix products of float32 are computed, on tensor cores in any case.

    Three products of TF32 are nearly as exact as one of float32, and need fewer
    registers. Those of bias and table are of float32 even if queries are not.
    """
    exact = q.dtype == torch.float32 and dot_precision() == 'ieee'
    return 'tf32x3' if exact else 'tf32'


def _run_over_tiles(kernel: Any, arguments: dict[str, Any], q: Tensor) -> None:
    """Run a kernel with a program for every tile and head."""
    count = q.shape[0] * arguments['HEADS']
    _run(kernel, arguments, q, lambda launch: count * _num_tiles(q, launch))


def _num_tiles(q: Tensor, launch: Launch) -> int:
    rows, columns = map(triton.cdiv, q.shape[1:3], launch.tile)
    return rows * columns


def _run(
    kernel: Any,
    arguments: dict[str, Any],
    q: Tensor,
    num_programs: Callable[[Launch], int],
) -> None:
    """Run a kernel with the fastest launch for the octave of the number of tokens."""

    def run(launch: Launch) -> None:
        kernel[(num_programs(launch),)](**arguments, **launch.options())

    block_c = arguments['BLOCK_C']
    octave = q.shape[:3].numel().bit_length()
    key = (kernel.fn.__name__, octave, arguments['KERNEL'], block_c)
    launch_fastest(run, _launches(block_c, q.element_size()), q, *key)


def _launches(block_c: int, itemsize: int) -> tuple[Launch, ...]:
    """Return the launches for some channels of a head, the best in theory first."""
    channel_bytes = MAX_BLOCK_BYTES // (2 * block_c * itemsize)
    fitting = (x for x in LAUNCHES if prod(x.block) * x.num_stages <= channel_bytes)
    return tuple(fitting) or LAUNCHES[-1:]


@triton.jit(do_not_specialize=SIZES)
def _forward(
    q_ptr, k_ptr, v_ptr, table_ptr, out_ptr, sums_ptr,
    q_stride, k_stride, v_stride, height, width,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SCALE: tl.constexpr,
    KERNEL: tl.constexpr, SIDE: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Compute the output of a tile of queries, and the log-sum-exp of their logits."""
    # 1. Load the queries of this program.
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    image, head, tile_y, tile_x = _tile(
        tl.program_id(0), height, width, HEADS, TILE_Y, TILE_X
    )
    tokens, inside = _tokens(image, tile_y, tile_x, height, width, TILE_Y, TILE_X)
    q = load_rows(q_ptr, tokens, inside, q_stride, head, CHANNELS, BLOCK_C)
    table = _load_table(table_ptr, head, KERNEL, SIDE, dtype) / SCALE

    # 2. Over the patch of their keys, block by block: the greatest logit so far, and
    # the sums of weights and of weighted values relative to it. Logits are not scaled
    # before the exponential, which has a factor anyway.
    FACTOR: tl.constexpr = SCALE * LOG2_E
    top, bottom = _keys(tile_y, TILE_Y, height, KERNEL)
    left, right = _keys(tile_x, TILE_X, width, KERNEL)
    peak = tl.full([TILE_Y * TILE_X], LOWEST / 2, dtype)
    total = tl.zeros([TILE_Y * TILE_X], dtype)
    out = tl.zeros([TILE_Y * TILE_X, BLOCK_C], dtype)
    for block_x in range(left, right, BLOCK_X):
        columns = _entries(
            tile_x, block_x, width, False, KERNEL, SIDE, TILE_X, BLOCK_X, dtype
        )
        columns = dot(table, tl.trans(columns), PRECISION)  # (SIDE, pairs)
        for block_y in range(top, bottom, BLOCK_Y):
            keys, valid = _tokens(
                image, block_y, block_x, height, width, BLOCK_Y, BLOCK_X
            )
            k = load_rows(k_ptr, keys, valid, k_stride, head, CHANNELS, BLOCK_C)
            v = load_rows(v_ptr, keys, valid, v_stride, head, CHANNELS, BLOCK_C)
            rows = _entries(
                tile_y, block_y, height, False, KERNEL, SIDE, TILE_Y, BLOCK_Y, dtype
            )
            bias = _bias(rows, columns, PRECISION, TILE_Y, TILE_X, BLOCK_Y, BLOCK_X)
            logits = dot(q, tl.trans(k), PRECISION, bias)
            # A greater logit rescales the sums so far.
            new_peak = tl.maximum(peak, tl.max(logits, 1))
            weights = tl.exp2(logits * FACTOR - (new_peak * FACTOR)[:, None])
            rescale = tl.exp2((peak - new_peak) * FACTOR)
            total = total * rescale + tl.sum(weights, 1)
            out = dot(weights.to(v.dtype), v, PRECISION, out * rescale[:, None])
            peak = new_peak

    # 3. Normalize and store.
    out = out / total[:, None]
    store_rows(out_ptr, out, tokens, inside, HEADS * CHANNELS, head, CHANNELS, BLOCK_C)
    scalars = _scalars(image, head, tokens, height, width, HEADS)
    tl.store(sums_ptr + scalars, peak * SCALE + tl.log(total), mask=inside)


@triton.jit(do_not_specialize=[*SIZES, 'images', 'partials'])
def _backward_queries(
    q_ptr, k_ptr, v_ptr, grad_ptr, table_ptr, out_ptr, sums_ptr, means_ptr,
    grad_q_ptr, partial_ptr,
    q_stride, k_stride, v_stride, grad_stride, height, width, images, partials,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SCALE: tl.constexpr,
    KERNEL: tl.constexpr, SIDE: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of queries, and a partial sum of that of a head's table.

    A program has every `partials`-th tile of its head. For every query it stores the
    mean of the gradient of its weights, weighted by them, which the gradient of the
    softmax subtracts.
    """
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    FACTOR: tl.constexpr = SCALE * LOG2_E
    head = tl.program_id(0) % HEADS
    table = _load_table(table_ptr, head, KERNEL, SIDE, dtype) / SCALE
    grad_table = tl.zeros([SIDE, SIDE], dtype)
    tiles = images * tl.cdiv(height, TILE_Y) * tl.cdiv(width, TILE_X)
    for tile in range(tl.program_id(0) // HEADS, tiles, partials):
        # 1. Load the queries of a tile, and what the forward pass kept of them.
        image, head, tile_y, tile_x = _tile(
            tile * HEADS + head, height, width, HEADS, TILE_Y, TILE_X
        )
        tokens, inside = _tokens(image, tile_y, tile_x, height, width, TILE_Y, TILE_X)
        q = load_rows(q_ptr, tokens, inside, q_stride, head, CHANNELS, BLOCK_C)
        grad = load_rows(grad_ptr, tokens, inside, grad_stride, head, CHANNELS, BLOCK_C)
        out = load_rows(
            out_ptr, tokens, inside, HEADS * CHANNELS, head, CHANNELS, BLOCK_C
        )
        means = tl.sum(grad.to(dtype) * out.to(dtype), 1)
        scalars = _scalars(image, head, tokens, height, width, HEADS)
        tl.store(means_ptr + scalars, means, mask=inside)
        # Queries beyond the feature map get weights of zero, by an infinite sum.
        sums = tl.load(sums_ptr + scalars, mask=inside, other=float('inf'))

        # 2. Over the patch of their keys: the weights again, from the log-sum-exp, and
        # the gradient of the logits, through the softmax.
        top, bottom = _keys(tile_y, TILE_Y, height, KERNEL)
        left, right = _keys(tile_x, TILE_X, width, KERNEL)
        grad_q = tl.zeros([TILE_Y * TILE_X, BLOCK_C], dtype)
        for block_x in range(left, right, BLOCK_X):
            is_column = _entries(
                tile_x, block_x, width, False, KERNEL, SIDE, TILE_X, BLOCK_X, dtype
            )
            columns = dot(table, tl.trans(is_column), PRECISION)
            for block_y in range(top, bottom, BLOCK_Y):
                keys, valid = _tokens(
                    image, block_y, block_x, height, width, BLOCK_Y, BLOCK_X
                )
                k = load_rows(k_ptr, keys, valid, k_stride, head, CHANNELS, BLOCK_C)
                v = load_rows(v_ptr, keys, valid, v_stride, head, CHANNELS, BLOCK_C)
                rows = _entries(
                    tile_y, block_y, height, False, KERNEL, SIDE, TILE_Y, BLOCK_Y, dtype
                )
                bias = _bias(rows, columns, PRECISION, TILE_Y, TILE_X, BLOCK_Y, BLOCK_X)
                logits = dot(q, tl.trans(k), PRECISION, bias)
                weights = tl.exp2(logits * FACTOR - (sums * LOG2_E)[:, None])
                grad_weights = dot(grad, tl.trans(v), PRECISION)
                grad_logits = weights * (grad_weights - means[:, None])
                grad_logits = grad_logits.to(k.dtype)
                grad_q = dot(grad_logits, k, PRECISION, grad_q)
                grad_table += _by_entry(
                    grad_logits, rows, is_column, PRECISION,
                    TILE_Y, TILE_X, BLOCK_Y, BLOCK_X,
                )  # fmt: skip

        # 3. Store.
        store_rows(
            grad_q_ptr, grad_q * SCALE, tokens, inside,
            HEADS * CHANNELS, head, CHANNELS, BLOCK_C,
        )  # fmt: skip
    cells = tl.arange(0, SIDE)
    partial_ptr += tl.program_id(0) * SIDE * SIDE
    tl.store(partial_ptr + cells[:, None] * SIDE + cells[None], grad_table)


@triton.jit(do_not_specialize=SIZES)
def _backward_keys(
    q_ptr, k_ptr, v_ptr, grad_ptr, table_ptr, sums_ptr, means_ptr,
    grad_k_ptr, grad_v_ptr,
    q_stride, k_stride, v_stride, grad_stride, height, width,
    HEADS: tl.constexpr, CHANNELS: tl.constexpr, SCALE: tl.constexpr,
    KERNEL: tl.constexpr, SIDE: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values."""
    # 1. Load the keys and values of this program.
    dtype: tl.constexpr = sums_ptr.dtype.element_ty
    FACTOR: tl.constexpr = SCALE * LOG2_E
    image, head, tile_y, tile_x = _tile(
        tl.program_id(0), height, width, HEADS, TILE_Y, TILE_X
    )
    keys, valid = _tokens(image, tile_y, tile_x, height, width, TILE_Y, TILE_X)
    k = load_rows(k_ptr, keys, valid, k_stride, head, CHANNELS, BLOCK_C)
    v = load_rows(v_ptr, keys, valid, v_stride, head, CHANNELS, BLOCK_C)
    table = _load_table(table_ptr, head, KERNEL, SIDE, dtype) / SCALE

    # 2. Over the queries that have them as neighbors: logits and weights as in the
    # forward pass, transposed.
    top, bottom = _queries(tile_y, TILE_Y, height, KERNEL)
    left, right = _queries(tile_x, TILE_X, width, KERNEL)
    grad_k = tl.zeros([TILE_Y * TILE_X, BLOCK_C], dtype)
    grad_v = tl.zeros([TILE_Y * TILE_X, BLOCK_C], dtype)
    for block_x in range(left, right, BLOCK_X):
        columns = _entries(
            tile_x, block_x, width, True, KERNEL, SIDE, TILE_X, BLOCK_X, dtype
        )
        columns = dot(table, tl.trans(columns), PRECISION)
        for block_y in range(top, bottom, BLOCK_Y):
            tokens, inside = _tokens(
                image, block_y, block_x, height, width, BLOCK_Y, BLOCK_X
            )
            q = load_rows(q_ptr, tokens, inside, q_stride, head, CHANNELS, BLOCK_C)
            grad = load_rows(
                grad_ptr, tokens, inside, grad_stride, head, CHANNELS, BLOCK_C
            )
            scalars = _scalars(image, head, tokens, height, width, HEADS)
            sums = tl.load(sums_ptr + scalars, mask=inside, other=float('inf'))
            means = tl.load(means_ptr + scalars, mask=inside, other=0.0)
            rows = _entries(
                tile_y, block_y, height, True, KERNEL, SIDE, TILE_Y, BLOCK_Y, dtype
            )
            bias = _bias(rows, columns, PRECISION, TILE_Y, TILE_X, BLOCK_Y, BLOCK_X)
            logits = dot(k, tl.trans(q), PRECISION, bias)
            weights = tl.exp2(logits * FACTOR - (sums * LOG2_E)[None])
            grad_v = dot(weights.to(grad.dtype), grad, PRECISION, grad_v)
            grad_weights = dot(v, tl.trans(grad), PRECISION)
            grad_logits = weights * (grad_weights - means[None])
            grad_k = dot(grad_logits.to(q.dtype), q, PRECISION, grad_k)

    # 3. Store.
    width_c: tl.constexpr = HEADS * CHANNELS
    store_rows(
        grad_k_ptr, grad_k * SCALE, keys, valid, width_c, head, CHANNELS, BLOCK_C
    )
    store_rows(grad_v_ptr, grad_v, keys, valid, width_c, head, CHANNELS, BLOCK_C)


@triton.jit
def _tile(
    index, height, width,
    HEADS: tl.constexpr, TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
):  # fmt: skip
    """Return image, head, first row and first column of a tile.

    Heads come first, as they share lines of memory; then columns, whose patches
    overlap.
    """
    columns = tl.cdiv(width, TILE_X)
    tiles = tl.cdiv(height, TILE_Y) * columns
    head, tile = index % HEADS, index // HEADS
    image, tile = tile // tiles, tile % tiles
    return image, head, tile // columns * TILE_Y, tile % columns * TILE_X


@triton.jit
def _tokens(image, top, left, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the tokens of a rectangle, row-major, and which are inside the image."""
    cells = tl.arange(0, ROWS * COLUMNS)
    y, x = top + cells // COLUMNS, left + cells % COLUMNS
    first = image.to(tl.int64) * height * width
    return first + (y * width + x), (y < height) & (x < width)


@triton.jit
def _scalars(image, head, tokens, height, width, HEADS: tl.constexpr):
    """Return the offsets of tokens in (B, heads, H * W)."""
    # That of token n of image b is (b * HEADS + head) * H * W + n.
    return tokens + (image * (HEADS - 1) + head).to(tl.int64) * height * width


@triton.jit
def _first_key(query, length, KERNEL: tl.constexpr):
    """Return the first neighbor of a query: at the ends, neighbors move inside."""
    return tl.minimum(tl.maximum(query - KERNEL // 2, 0), length - KERNEL)


@triton.jit
def _keys(first, TILE: tl.constexpr, length, KERNEL: tl.constexpr):
    """Return the bounds of the neighbors of a tile of queries along an axis."""
    last = tl.minimum(first + TILE, length) - 1
    begin = _first_key(first, length, KERNEL)
    return begin, _first_key(last, length, KERNEL) + KERNEL


@triton.jit
def _queries(first, TILE: tl.constexpr, length, KERNEL: tl.constexpr):
    """Return the bounds of the queries that have a tile of keys as neighbors.

    Keys near an end are neighbors of all queries up to that end.
    """
    last = tl.minimum(first + TILE, length) - 1
    begin = tl.where(first < KERNEL, 0, first - KERNEL // 2)
    end = tl.where(last >= length - KERNEL, length, last + KERNEL // 2 + 1)
    return begin, end


@triton.jit
def _load_table(
    pointer, head, KERNEL: tl.constexpr, SIDE: tl.constexpr, dtype: tl.constexpr
):
    """Load the table of a head, (SIDE, SIDE), with the lowest logits beyond it."""
    span: tl.constexpr = 2 * KERNEL - 1
    y, x = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None]
    inside = (y < span) & (x < span)
    return tl.load(pointer + (head * span + y) * span + x, inside, LOWEST).to(dtype)


@triton.jit
def _entries(
    tile, block, length, KEYS_FIRST: tl.constexpr,
    KERNEL: tl.constexpr, SIDE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
    dtype: tl.constexpr,
):  # fmt: skip
    """Return which pair along an axis has which entry, one-hot, (TILE * BLOCK, SIDE).

    Pairs are those of the tokens of a tile with the tokens of a block. Tokens that are
    not near have the last entry, beyond the table.
    """
    pairs = tl.arange(0, TILE * BLOCK)
    query, key = tile + pairs // BLOCK, block + pairs % BLOCK
    if KEYS_FIRST:  # the tile is one of keys
        query, key = key, query
    # As an unsigned number, a key before the first neighbor is beyond the last, too.
    near = (key - _first_key(query, length, KERNEL)).to(tl.uint32) < KERNEL
    entry = tl.where(near, key - query + KERNEL - 1, SIDE - 1)
    return (entry[:, None] == tl.arange(0, SIDE)[None]).to(dtype)


@triton.jit
def _bias(
    rows, columns, PRECISION: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Return the bias of all pairs of a tile and a block, (tile, block).

    Of the one-hot entries of pairs of rows, (pairs, SIDE), and the table for pairs of
    columns, (SIDE, pairs).
    """
    bias = dot(rows, columns, PRECISION)
    bias = tl.reshape(bias, [TILE_Y, BLOCK_Y, TILE_X, BLOCK_X])
    bias = tl.permute(bias, [0, 2, 1, 3])
    return tl.reshape(bias, [TILE_Y * TILE_X, BLOCK_Y * BLOCK_X])


@triton.jit
def _by_entry(
    x, rows, columns, PRECISION: tl.constexpr,
    TILE_Y: tl.constexpr, TILE_X: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr,
):  # fmt: skip
    """Sum (tile, block) by entries of the table, (SIDE, SIDE): the bias transposed.

    For 8 x 8 queries, 4 x 16 keys and heads of 32 channels these are a fifth as many
    multiplications as the other products of the kernel.
    """
    x = tl.permute(tl.reshape(x, [TILE_Y, TILE_X, BLOCK_Y, BLOCK_X]), [0, 2, 1, 3])
    x = tl.reshape(x, [TILE_Y * BLOCK_Y, TILE_X * BLOCK_X])
    return dot(tl.trans(rows), dot(x, columns.to(x.dtype), PRECISION), PRECISION)
