"""Triton kernels of deformable attention, which interpolate the bias where it is used.

Nothing of the size of queries times keys is stored. The forward pass is that of
FlashAttention-2 (arXiv 2307.08691); every pair of query and key reads four entries of
the table, which stays in the caches. The backward pass computes the weights again, in
one kernel over queries for their gradient, one over keys for theirs and for that of the
sampling locations, and one over the table.

The gradient of the table is a scatter: every pair adds to four entries. It is turned
into a gather along one axis, and a matrix product along the other. Columns of queries
are evenly spaced, so that an entry of a row of the table gathers from a few neighboring
queries of a row, other ones for every key. The product with the weights of the rows of
the table sums over the keys. So nothing is added atomically, and results are
deterministic.

Pairs are laid out as (keys, queries): neighboring queries read neighboring entries of
the table for one key.

Import it only where Triton is installed. Its interpreter runs the kernels on a CPU if
TRITON_INTERPRET=1 is set before.
"""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mmsparse.ops._precision import precise_dtype

LOG2E = tl.constexpr(1.4426950408889634)  # exp(x) = exp2(LOG2E * x)
# Zeros around the table: both entries of an axis may be outside.
BORDER = tl.constexpr(2)
MIN_BLOCK = 16  # rows and columns of the smallest matrix product
WIDE = 256  # bytes of a head of a token from which blocks are small, to fit on the chip
# Entries of the table along an axis that a program sums: 64 KiB in float32, half of the
# registers of 8 warps.
MAX_TABLE_BLOCK = 128
# Theory: enough to fill a large GPU. Where images times heads are fewer, the queries
# are divided into parts, whose partial sums are added.
MIN_PROGRAMS = 512
# Kernels are not compiled for each of them: images differ in size.
SIZES = ('width', 'num_queries', 'num_keys')

Options = dict[str, int]  # block sizes, num_warps and num_stages


def is_supported() -> bool:
    """Return whether this version of Triton can gather within a program."""
    return hasattr(tl, 'gather')


def forward_options(row_bytes: int) -> tuple[Options, ...]:
    """Return options of the forward kernel, the first of them by default.

    Theory: a tile of pairs of query and key is limited by registers, of which every
    pair needs about ten; compiled for 32 channels in bfloat16, no option spills any.
    Tensor cores multiply 16 rows, here queries, for each warp.

    Args:
        row_bytes: Size of a head of a token.
    """
    if row_bytes > WIDE:
        return (dict(BLOCK_Q=32, BLOCK_K=16, num_warps=2, num_stages=1),)
    return (
        dict(BLOCK_Q=64, BLOCK_K=32, num_warps=4, num_stages=3),
        dict(BLOCK_Q=64, BLOCK_K=16, num_warps=4, num_stages=2),
    )


def backward_options(row_bytes: int) -> tuple[Options, ...]:
    """Return options of the kernels over queries and keys; here, the rows are keys."""
    if row_bytes > WIDE:
        return (dict(BLOCK_Q=16, BLOCK_K=32, num_warps=2, num_stages=1),)
    return (
        dict(BLOCK_Q=32, BLOCK_K=64, num_warps=4, num_stages=2),
        dict(BLOCK_Q=16, BLOCK_K=64, num_warps=4, num_stages=2),
    )


def table_options(
    row_bytes: int, table_size: Sequence[int], width: int
) -> tuple[Options, ...]:
    """Return options of the kernel over the table, with a tile of up to all of it.

    Args:
        row_bytes: Size of a head of a token.
        table_size: Entries down and across.
        width: Number of columns of queries.
    """
    block_y, block_x = (min(_block(n), MAX_TABLE_BLOCK) for n in table_size)
    num_warps = 8 if block_y * block_x >= 64 * 64 else 4
    tile = dict(
        BLOCK_Y=block_y,
        BLOCK_X=block_x,
        BLOCK_Q=min(_block(width), 64) if row_bytes <= WIDE else MIN_BLOCK,
        num_stages=1,
    )
    # The sums of a row of the table, for every key, take registers, too.
    block_k = min(64 if row_bytes <= WIDE else 32, 64 * 64 // block_x)
    return (
        dict(**tile, BLOCK_K=block_k, num_warps=num_warps),
        dict(**tile, BLOCK_K=block_k // 2, num_warps=num_warps // 2),
    )


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    """Compute :func:`mmsparse.ops.deformable_attention`.

    There is no double backward. Matrix products of features are computed in the dtype
    of the queries, all else in float32 at least.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, Hk, Wk, C).
        v: Values, (B, Hk, Wk, C).
        locations: Sampling locations of the keys, (B, groups, Hk, Wk, 2).
        table: Bias by displacement, (heads, Ty, Tx).
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,),
            evenly spaced, ascending; without gradient.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: Triton is too old.
    """
    if not is_supported():
        raise ValueError(
            "backend='triton' needs a version of triton with triton.language.gather; "
            f"got {triton.__version__}. Use 'auto'."
        )
    dtype = torch.promote_types(precise_dtype(q), locations.dtype)
    out, _ = _attend(
        q,
        k.to(q.dtype),
        v.to(q.dtype),
        locations.to(dtype),
        table.to(dtype),
        *(axis.to(dtype) for axis in axes),
    )
    return out


@torch.library.custom_op('mmsparse::deformable_attention', mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of logits, base 2, (B, heads, H * W)."""
    inputs = _prepare(q, k, v, locations, table, rows, columns)
    out, sums = _new_outputs(q, k, v, locations, table, rows, columns)
    _launch(_forward, forward_options, _over_queries(sums), inputs, out, sums)
    return out, sums


@_attend.register_fake
def _new_outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> tuple[Tensor, Tensor]:
    num_queries = q.shape[1] * q.shape[2]
    sums = table.new_empty(q.shape[0], table.shape[0], num_queries)
    return q.new_empty(q.shape), sums


@torch.library.custom_op('mmsparse::deformable_attention_backward', mutates_args=())
def _attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, locations and table."""
    inputs = _prepare(q, k, v, locations, table, rows, columns)
    grad = grad.contiguous()
    # 1. The gradient of the queries, and the mean over the keys of the gradient of the
    # weights, weighted by them, which the gradient of the softmax subtracts.
    grad_q, means = torch.empty_like(inputs[0]), torch.empty_like(sums)
    shared = grad, sums, means
    _launch(
        _backward_queries, backward_options, _over_queries(sums), inputs, *shared,
        out, grad_q,
    )  # fmt: skip
    # 2. Those of keys, values and locations.
    grad_k, grad_v, grad_locations = _gradients_of_keys(inputs, shared)
    # 3. That of the table.
    return (
        grad_q,
        grad_k,
        grad_v,
        grad_locations,
        _gradient_of_table(inputs, shared, table),
    )


@_attend_backward.register_fake
def _new_gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


def _save_for_backward(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(grad, *ctx.saved_tensors), None, None


_attend.register_autograd(_differentiate, setup_context=_save_for_backward)


def _prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> list[Tensor]:
    """Return what all kernels read: contiguous tensors, and the table in a border of 0.

    Its entries are of logits to base 2.
    """
    padded = F.pad(table * LOG2E.value, (BORDER.value,) * 4)
    return [x.contiguous() for x in (q, k, v, locations, padded, rows, columns)]


def _gradients_of_keys(
    inputs: Sequence[Tensor], shared: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of keys, values and locations."""
    q, k, v, locations, table = inputs[:5]
    num_keys, num_queries = k.shape[1] * k.shape[2], q.shape[1] * q.shape[2]
    num_parts = _num_parts(
        len(q) * len(table) * triton.cdiv(num_keys, 64), triton.cdiv(num_queries, 64)
    )
    # Parts are added in float32 at least.
    dtype = k.dtype if num_parts == 1 else table.dtype
    grad_k, grad_v = (x.new_empty(num_parts, *x.shape, dtype=dtype) for x in (k, v))
    grad_locations = locations.new_empty(num_parts, len(q), len(table), num_keys, 2)

    def programs(options: Options) -> tuple[int, ...]:
        blocks = triton.cdiv(num_keys, options['BLOCK_K'])
        return len(q) * len(table) * blocks, num_parts

    tensors = *shared, grad_k, grad_v, grad_locations
    _launch(_backward_keys, backward_options, programs, inputs, *tensors)
    # Heads of a group share their locations.
    grad_locations = grad_locations.unflatten(2, (locations.shape[1], -1)).sum((0, 3))
    return (
        _sum_parts(grad_k).to(k.dtype),
        _sum_parts(grad_v).to(v.dtype),
        grad_locations.view(locations.shape),
    )


def _gradient_of_table(
    inputs: Sequence[Tensor], shared: Sequence[Tensor], table: Tensor
) -> Tensor:
    q = inputs[0]
    num_tiles = prod(triton.cdiv(n, MAX_TABLE_BLOCK) for n in table.shape[1:])
    num_parts = _num_parts(len(q) * len(table) * num_tiles, q.shape[1])
    partial_sums = table.new_empty(num_parts, len(q), *table.shape)
    _launch(
        _backward_table,
        partial(table_options, table_size=table.shape[1:], width=q.shape[2]),
        lambda _: (len(q) * len(table), num_tiles, num_parts),
        inputs,
        *shared,
        partial_sums,
    )
    return partial_sums.sum((0, 1))


def _num_parts(programs: int, limit: int) -> int:
    """Return into how many parts the queries of a program are divided."""
    return min(triton.cdiv(MIN_PROGRAMS, programs), limit)


def _sum_parts(x: Tensor) -> Tensor:
    return x[0] if len(x) == 1 else x.sum(0)


def _over_queries(sums: Tensor) -> Callable[[Options], tuple[int, ...]]:
    """Return the grid of a kernel over blocks of queries of images and heads."""
    batch, num_heads, num_queries = sums.shape
    return lambda options: (
        batch * num_heads * triton.cdiv(num_queries, options['BLOCK_Q']),
    )


def _launch(
    kernel: Any,
    options: Callable[[int], Sequence[Options]],
    programs: Callable[[Options], tuple[int, ...]],
    inputs: Sequence[Tensor],
    *tensors: Tensor,
) -> None:
    """Launch a kernel with the fastest of some options.

    They are measured at the first launch for sizes of an order of magnitude, which
    waits for the GPU. Its interpreter takes the first, and so does the capture of a
    CUDA graph.

    Args:
        kernel: Its arguments are ``inputs``, ``tensors``, sizes and constants.
        options: Maps the bytes of a head of a token to options.
        programs: Maps options to the grid.
        inputs: q, k, v, locations, table, rows and columns.
        *tensors: Other tensors; it only writes to what it does not read.
    """
    q, k, _, locations, padded, _, _ = inputs
    num_queries, num_keys = q.shape[1] * q.shape[2], k.shape[1] * k.shape[2]
    sizes = q.shape[2], num_queries, num_keys
    dim = q.shape[-1] // len(padded)
    exact = torch.get_float32_matmul_precision() == 'highest'
    constants = dict(
        TABLE_H=padded.shape[1] - 2 * BORDER.value,
        TABLE_W=padded.shape[2] - 2 * BORDER.value,
        HEADS=len(padded),
        GROUPS=locations.shape[1],
        DIM=dim,
        SCALE=dim**-0.5,
        BLOCK_D=_block(dim),
        # Half precision tolerates what TF32 loses in the gradient of the table.
        PRECISION='ieee' if exact and q.dtype.itemsize > 2 else 'tf32',
    )

    def launch(chosen: Options) -> None:
        kernel[programs(chosen)](*inputs, *tensors, *sizes, **constants, **chosen)

    with torch.cuda.device_of(q):
        octaves = (n.bit_length() for n in (len(q), *sizes))
        key = kernel, q.dtype, *constants.values(), *octaves
        launch(_fastest(launch, options(dim * q.dtype.itemsize), key, q))


_measured: dict[Hashable, Options] = {}


def _fastest(
    launch: Callable[[Options], None],
    options: Sequence[Options],
    key: Hashable,
    x: Tensor,
) -> Options:
    if len(options) == 1 or not x.is_cuda:
        return options[0]
    if key not in _measured:
        if torch.cuda.is_current_stream_capturing():
            return options[0]
        _measured[key] = min(options, key=partial(_milliseconds, launch))
    return _measured[key]


def _milliseconds(launch: Callable[[Options], None], options: Options) -> float:
    try:
        return triton.testing.do_bench(partial(launch, options), warmup=5, rep=20)
    except triton.runtime.errors.OutOfResources:
        return inf


def _block(length: int) -> int:
    return max(triton.next_power_of_2(length), MIN_BLOCK)


@triton.jit
def _load(
    pointer, image, tokens, count, head,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load a head of some tokens of an image, (tokens, BLOCK_D); zero outside."""
    channels = tl.arange(0, BLOCK_D)
    offsets = (image * count + tokens)[:, None] * (HEADS * DIM) + head * DIM
    inside = (tokens < count)[:, None] & (channels < DIM)[None]
    return tl.load(pointer + offsets + channels[None], mask=inside, other=0.0)


@triton.jit
def _store(
    pointer, values, image, tokens, count, head,
    HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Store a head of some tokens of an image."""
    channels = tl.arange(0, BLOCK_D)
    offsets = (image * count + tokens)[:, None] * (HEADS * DIM) + head * DIM
    inside = (tokens < count)[:, None] & (channels < DIM)[None]
    values = values.to(pointer.dtype.element_ty)
    tl.store(pointer + offsets + channels[None], values, mask=inside)


@triton.jit
def _load_points(rows_ptr, columns_ptr, queries, width, num_queries):
    """Load the coordinates (y, x) of queries."""
    inside = queries < num_queries
    y = tl.load(rows_ptr + queries // width, mask=inside, other=0.0)
    x = tl.load(columns_ptr + queries % width, mask=inside, other=0.0)
    return y, x


@triton.jit
def _load_locations(
    pointer, image, keys, num_keys, head, HEADS: tl.constexpr, GROUPS: tl.constexpr
):
    """Load the coordinates (y, x) of keys."""
    group = head // (HEADS // GROUPS)
    points = pointer + ((image * GROUPS + group) * num_keys + keys) * 2
    inside = keys < num_keys
    y = tl.load(points, mask=inside, other=0.0)
    x = tl.load(points + 1, mask=inside, other=0.0)
    return y, x


@triton.jit
def _dot(a, b, PRECISION: tl.constexpr):
    dtype: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=dtype)


@triton.jit
def _table_index(queries, keys, LENGTH: tl.constexpr):
    """Compute the fractional index into an axis of the table."""
    SCALE: tl.constexpr = (LENGTH - 1) / 4
    return (queries + 2) * SCALE - keys * SCALE


@triton.jit
def _interpolate(
    table_ptr, y, x, keys_y, keys_x, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr
):
    """Interpolate the padded table of a head.

    Returns:
        The bias and its derivatives by the fractional row and column, to the right at
        the entries, (keys, queries).
    """
    # 1. Fractional indices.
    row = _table_index(y[None], keys_y[:, None], TABLE_H)
    column = _table_index(x[None], keys_x[:, None], TABLE_W)
    top, left = tl.floor(row), tl.floor(column)
    down, right = row - top, column - left
    # 2. Four entries, the first at the top left. Indices far outside become near ones.
    i = tl.minimum(tl.maximum(top.to(tl.int32), -BORDER), TABLE_H) + BORDER
    j = tl.minimum(tl.maximum(left.to(tl.int32), -BORDER), TABLE_W) + BORDER
    WIDTH: tl.constexpr = TABLE_W + 2 * BORDER
    entry = table_ptr + (i * WIDTH + j)
    a, b = tl.load(entry), tl.load(entry + 1)
    c, d = tl.load(entry + WIDTH), tl.load(entry + WIDTH + 1)
    # 3. Interpolate along the columns, then along the rows.
    upper, lower = a + right * (b - a), c + right * (d - c)
    bias = upper + down * (lower - upper)
    return bias, lower - upper, (b - a) + down * ((d - c) - (b - a))


@triton.jit
def _hat(distance):
    """Compute the weight of an entry at a distance from the fractional index."""
    return tl.maximum(1 - tl.abs(distance), 0)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    q_ptr, k_ptr, v_ptr, locations_ptr, table_ptr, rows_ptr, columns_ptr,
    out_ptr, sums_ptr,
    width, num_queries, num_keys,
    TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the output of a block of queries of an image and a head.

    And the log-sum-exp of their logits, to base 2, which the backward pass needs.
    """
    # 1. Load the queries of this program.
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // HEADS, image_head % HEADS
    queries = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = _load(q_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
    y, x = _load_points(rows_ptr, columns_ptr, queries, width, num_queries)
    table_ptr += head * ((TABLE_H + 2 * BORDER) * (TABLE_W + 2 * BORDER))

    # 2. Over the keys, block by block: the greatest logit so far, and the sums of
    # weights and of weighted values relative to it.
    dtype = sums_ptr.dtype.element_ty
    peak = tl.full([BLOCK_Q], float('-inf'), dtype)
    total = tl.zeros([BLOCK_Q], dtype)
    out = tl.zeros([BLOCK_Q, BLOCK_D], dtype)
    for first in range(0, num_keys, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        v = _load(v_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        keys_y, keys_x = _load_locations(
            locations_ptr, image, keys, num_keys, head, HEADS, GROUPS
        )
        bias, _, _ = _interpolate(table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W)
        logits = _dot(q, tl.trans(k), PRECISION) * (SCALE * LOG2E)
        logits += tl.trans(bias)
        logits = tl.where((keys < num_keys)[None], logits, float('-inf'))
        # A greater logit rescales the sums so far.
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - new_peak[:, None])
        rescale = tl.exp2(peak - new_peak)
        total = total * rescale + tl.sum(weights, 1)
        out = out * rescale[:, None] + _dot(weights.to(v.dtype), v, PRECISION)
        peak = new_peak

    # 3. Normalize and store.
    out = out / total[:, None]
    _store(out_ptr, out, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
    sums = sums_ptr + image_head * num_queries + queries
    tl.store(sums, peak + tl.log2(total), mask=queries < num_queries)


@triton.jit
def _grad_logits(
    q, k, v, grad, bias, sums, means, is_key,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the weights and the gradient of the logits, (keys, queries).

    Queries outside have an infinite ``sums``, so that both are zero.
    """
    logits = _dot(k, tl.trans(q), PRECISION) * (SCALE * LOG2E) + bias
    logits = tl.where(is_key[:, None], logits, float('-inf'))
    weights = tl.exp2(logits - sums[None])
    grad_weights = _dot(v, tl.trans(grad), PRECISION)
    return weights, weights * (grad_weights - means[None])


@triton.jit(do_not_specialize=SIZES)
def _backward_queries(
    q_ptr, k_ptr, v_ptr, locations_ptr, table_ptr, rows_ptr, columns_ptr,
    grad_ptr, sums_ptr, means_ptr, out_ptr, grad_q_ptr,
    width, num_queries, num_keys,
    TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a block of queries of an image and a head.

    And the means of the gradient of their weights, which the other kernels need.
    """
    # 1. Load the queries of this program, and what the forward pass computed for them.
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // HEADS, image_head % HEADS
    queries = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = _load(q_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
    grad = _load(grad_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
    out = _load(out_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
    y, x = _load_points(rows_ptr, columns_ptr, queries, width, num_queries)
    table_ptr += head * ((TABLE_H + 2 * BORDER) * (TABLE_W + 2 * BORDER))
    offsets, inside = image_head * num_queries + queries, queries < num_queries
    sums = tl.load(sums_ptr + offsets, mask=inside, other=float('inf'))

    # 2. The mean of the gradient of the weights is that of the output times it.
    dtype = sums_ptr.dtype.element_ty
    means = tl.sum(grad.to(dtype) * out.to(dtype), 1)
    tl.store(means_ptr + offsets, means, mask=inside)

    # 3. Over the keys: back through the softmax, and to the queries.
    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], dtype)
    for first in range(0, num_keys, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        v = _load(v_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        keys_y, keys_x = _load_locations(
            locations_ptr, image, keys, num_keys, head, HEADS, GROUPS
        )
        bias, _, _ = _interpolate(table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W)
        _, grad_logits = _grad_logits(
            q, k, v, grad, bias, sums, means, keys < num_keys, SCALE, PRECISION
        )
        grad_q += _dot(tl.trans(grad_logits.to(k.dtype)), k, PRECISION)

    # 4. Store.
    grad_q *= SCALE
    _store(grad_q_ptr, grad_q, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _backward_keys(
    q_ptr, k_ptr, v_ptr, locations_ptr, table_ptr, rows_ptr, columns_ptr,
    grad_ptr, sums_ptr, means_ptr, grad_k_ptr, grad_v_ptr, grad_locations_ptr,
    width, num_queries, num_keys,
    TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a block of keys of an image and a head.

    Those of keys, values and locations, from a part of the queries.
    """
    # 1. Load the keys and values of this program.
    blocks = tl.cdiv(num_keys, BLOCK_K)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // HEADS, image_head % HEADS
    keys = tl.program_id(0) % blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    k = _load(k_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
    v = _load(v_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
    keys_y, keys_x = _load_locations(
        locations_ptr, image, keys, num_keys, head, HEADS, GROUPS
    )
    table_ptr += head * ((TABLE_H + 2 * BORDER) * (TABLE_W + 2 * BORDER))

    # 2. Over the queries of this part: weights and gradients as above.
    dtype = sums_ptr.dtype.element_ty
    grad_k = tl.zeros([BLOCK_K, BLOCK_D], dtype)
    grad_v = tl.zeros([BLOCK_K, BLOCK_D], dtype)
    grad_y, grad_x = tl.zeros([BLOCK_K], dtype), tl.zeros([BLOCK_K], dtype)
    part, num_parts = tl.program_id(1), tl.num_programs(1)
    length = tl.cdiv(num_queries, num_parts)
    begin, end = part * length, tl.minimum(part * length + length, num_queries)
    for first in range(begin, end, BLOCK_Q):
        queries = first + tl.arange(0, BLOCK_Q)
        q = _load(q_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
        grad = _load(grad_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
        y, x = _load_points(rows_ptr, columns_ptr, queries, width, num_queries)
        offsets, inside = image_head * num_queries + queries, queries < end
        sums = tl.load(sums_ptr + offsets, mask=inside, other=float('inf'))
        means = tl.load(means_ptr + offsets, mask=inside, other=0.0)
        bias, slope_y, slope_x = _interpolate(
            table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W
        )
        weights, grad_logits = _grad_logits(
            q, k, v, grad, bias, sums, means, keys < num_keys, SCALE, PRECISION
        )
        grad_v += _dot(weights.to(grad.dtype), grad, PRECISION)
        grad_k += _dot(grad_logits.to(q.dtype), q, PRECISION)
        grad_y += tl.sum(grad_logits * slope_y, 1)
        grad_x += tl.sum(grad_logits * slope_x, 1)

    # 3. From indices to locations, which have the opposite sign (_table_index); store.
    grad_k *= SCALE
    image_part = part * (tl.num_programs(0) // blocks // HEADS) + image
    _store(grad_k_ptr, grad_k, image_part, keys, num_keys, head, HEADS, DIM, BLOCK_D)
    _store(grad_v_ptr, grad_v, image_part, keys, num_keys, head, HEADS, DIM, BLOCK_D)
    points = ((image_part * HEADS + head) * num_keys + keys) * 2
    points += grad_locations_ptr
    tl.store(points, grad_y * ((1 - TABLE_H) / 4 / LOG2E), mask=keys < num_keys)
    tl.store(points + 1, grad_x * ((1 - TABLE_W) / 4 / LOG2E), mask=keys < num_keys)


@triton.jit(do_not_specialize=SIZES)
def _backward_table(
    q_ptr, k_ptr, v_ptr, locations_ptr, table_ptr, rows_ptr, columns_ptr,
    grad_ptr, sums_ptr, means_ptr, grad_table_ptr,
    width, num_queries, num_keys,
    TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_Y: tl.constexpr, BLOCK_X: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of the table of a head from an image.

    From a part of the rows of queries.
    """
    # 1. The entries of this program.
    image_head = tl.program_id(0).to(tl.int64)
    image, head = image_head // HEADS, image_head % HEADS
    tiles_x = tl.cdiv(TABLE_W, BLOCK_X)
    entries_y = tl.program_id(1) // tiles_x * BLOCK_Y + tl.arange(0, BLOCK_Y)
    entries_x = tl.program_id(1) % tiles_x * BLOCK_X + tl.arange(0, BLOCK_X)
    table_ptr += head * ((TABLE_H + 2 * BORDER) * (TABLE_W + 2 * BORDER))

    # 2. From one column of queries to the next, the index into the table grows by a
    # step: less than so many terms are within an entry of another.
    x_begin = tl.load(columns_ptr)
    spacing = (tl.load(columns_ptr + width - 1) - x_begin) / tl.maximum(width - 1, 1)
    step = spacing * ((TABLE_W - 1) / 4)
    per_entry = 1 / tl.maximum(step, 1e-6)  # 0 for one column of queries or entries
    # Two terms, not three, where the step is 1 but for rounding.
    num_terms = tl.minimum(tl.ceil(2 * per_entry - 1e-5), BLOCK_Q).to(tl.int32)

    dtype = sums_ptr.dtype.element_ty
    grad_table = tl.zeros([BLOCK_Y, BLOCK_X], dtype)
    height = num_queries // width
    part, num_parts = tl.program_id(2), tl.num_programs(2)
    length = tl.cdiv(height, num_parts)
    for first_key in range(0, num_keys, BLOCK_K):
        # 3. Load keys and values; the first column of queries that adds to an entry.
        keys = first_key + tl.arange(0, BLOCK_K)
        k = _load(k_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        v = _load(v_ptr, image, keys, num_keys, head, HEADS, DIM, BLOCK_D)
        keys_y, keys_x = _load_locations(
            locations_ptr, image, keys, num_keys, head, HEADS, GROUPS
        )
        index_x = _table_index(x_begin, keys_x[:, None], TABLE_W)  # of the first column
        distance = entries_x[None] - index_x  # (keys, entries)
        nearest = tl.floor((distance - 1) * per_entry) + 1

        for row in range(part * length, tl.minimum(part * length + length, height)):
            y = tl.load(rows_ptr + row)
            across = tl.zeros([BLOCK_K, BLOCK_X], dtype)
            for left in range(0, width, BLOCK_Q):
                # 4. The gradient of the logits of a block of a row of queries.
                columns = left + tl.arange(0, BLOCK_Q)
                inside = columns < width
                queries = tl.where(inside, row * width + columns, num_queries)
                q = _load(q_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D)
                grad = _load(
                    grad_ptr, image, queries, num_queries, head, HEADS, DIM, BLOCK_D
                )
                x = tl.load(columns_ptr + columns, mask=inside, other=0.0)
                offsets = image_head * num_queries + queries
                sums = tl.load(sums_ptr + offsets, mask=inside, other=float('inf'))
                means = tl.load(means_ptr + offsets, mask=inside, other=0.0)
                bias, _, _ = _interpolate(
                    table_ptr, y + tl.zeros_like(x), x, keys_y, keys_x, TABLE_H, TABLE_W
                )
                _, grad_logits = _grad_logits(
                    q, k, v, grad, bias, sums, means, keys < num_keys, SCALE, PRECISION
                )
                # 5. Gather it into the entries of a row of the table, key by key.
                near = tl.minimum(tl.maximum(nearest - left, 0), BLOCK_Q).to(tl.int32)
                for term in range(num_terms):
                    column = near + term
                    # Within the block, whatever integer NaN has become.
                    inner = column & (BLOCK_Q - 1)
                    weight = _hat(distance - (left + column) * step)
                    weight = tl.where(column < BLOCK_Q, weight, 0)
                    across += weight * tl.gather(grad_logits, inner, 1)
            # 6. Sum over the keys, weighted by the rows of the table.
            index_y = _table_index(y, keys_y[None], TABLE_H)
            weights_y = _hat(entries_y[:, None] - index_y)  # (entries, keys)
            grad_table += _dot(weights_y.to(dtype), across, PRECISION)

    # 7. Store.
    image_part = part * (tl.num_programs(0) // HEADS) + image
    rows = (image_part * HEADS + head) * TABLE_H + entries_y
    entries = rows[:, None] * TABLE_W + entries_x[None]
    inside = (entries_y < TABLE_H)[:, None] & (entries_x < TABLE_W)[None]
    tl.store(grad_table_ptr + entries, grad_table, mask=inside)
