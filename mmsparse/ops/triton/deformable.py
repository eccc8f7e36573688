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

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.triton._common import (
    LOG2_E,
    MIN_BLOCK,
    Launch,
    block_size,
    dot,
    dot_precision,
    launch_fastest,
    load_rows,
    store_rows,
    token_matrix,
)

# Zeros around the table: both entries of an axis may be outside.
BORDER = tl.constexpr(2)
WIDE = 256  # bytes of a head of a token from which blocks are small, to fit on the chip
# Entries of the table along an axis that a program sums: 64 KiB in float32, half of the
# registers of 8 warps.
MAX_TABLE_BLOCK = 128
# Theory: enough to fill a large GPU. Where images times heads are fewer, the queries
# are divided into parts, whose partial sums are added.
MIN_PROGRAMS = 512
# Arguments that are not compiled in: images of all sizes run the same kernels.
SIZES = ['width', 'num_queries', 'num_keys']


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


def is_supported() -> bool:
    """Return whether this version of Triton can gather within a program."""
    return hasattr(tl, 'gather')


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
    out, sums = _empty_outputs(q, k, v, locations, table, rows, columns)
    shared = _shared_arguments(q, k, v, locations, table, rows, columns)
    arguments = shared | dict(out_ptr=out, sums_ptr=sums)
    _run_over_queries(_forward, forward_launches(_row_bytes(q, table)), arguments)
    return out, sums


@_attend.register_fake
def _empty_outputs(
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
    means, grad_q = torch.empty_like(sums), q.new_empty(q.shape)
    shared = _shared_arguments(q, k, v, locations, table, rows, columns)
    shared |= dict(grad_ptr=grad.contiguous(), sums_ptr=sums, means_ptr=means)
    # The kernel over queries stores means that the others read.
    arguments = shared | dict(out_ptr=out, grad_q_ptr=grad_q)
    launches = backward_launches(_row_bytes(q, table))
    _run_over_queries(_backward_queries, launches, arguments)
    return (
        grad_q,
        *_gradients_of_keys(shared, k, v, locations, table),
        _gradient_of_table(shared, q, table),
    )


@_attend_backward.register_fake
def _empty_gradients(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in inputs[:5])


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *_attend_backward(grad, *ctx.saved_tensors), None, None


_attend.register_autograd(_differentiate, setup_context=_setup_context)


def _shared_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    rows: Tensor,
    columns: Tensor,
) -> dict[str, Any]:
    """Return the arguments that all kernels have; upper-case ones are compiled in."""
    arguments: dict[str, Any] = {}
    for name, x in dict(q=q, k=k, v=v).items():
        matrix = token_matrix(x)
        arguments |= {f'{name}_ptr': matrix, f'{name}_stride': matrix.stride(0)}
    num_heads, table_h, table_w = table.shape
    channels = q.shape[-1] // num_heads
    return arguments | dict(
        locations_ptr=locations.contiguous(),
        # In a border of zeros, and for logits to base 2.
        table_ptr=F.pad(table * LOG2_E.value, (BORDER.value,) * 4),
        rows_ptr=rows.contiguous(),
        columns_ptr=columns.contiguous(),
        width=q.shape[2],
        num_queries=q.shape[1] * q.shape[2],
        num_keys=k.shape[1] * k.shape[2],
        TABLE_H=table_h,
        TABLE_W=table_w,
        HEADS=num_heads,
        GROUPS=locations.shape[1],
        DIM=channels,
        SCALE=channels**-0.5,
        BLOCK_D=block_size(channels),
        # Half precision tolerates what TF32 loses in the gradient of the table.
        PRECISION='tf32' if q.dtype.itemsize == 2 else dot_precision(),
    )


def _row_bytes(q: Tensor, table: Tensor) -> int:
    """Return the size of a head of a token."""
    return q.shape[-1] // len(table) * q.dtype.itemsize


def _run_over_queries(
    kernel: Any, launches: Sequence[Launch], arguments: dict[str, Any]
) -> None:
    """Run a program for each block of queries of every image and head."""
    batch, num_heads, num_queries = arguments['sums_ptr'].shape

    def run(launch: Launch) -> None:
        programs = batch * num_heads * triton.cdiv(num_queries, launch.tile)
        kernel[(programs,)](
            **arguments,
            BLOCK_Q=launch.tile,
            BLOCK_K=launch.step,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    _launch(kernel, run, launches, arguments)


def _gradients_of_keys(
    shared: dict[str, Any], k: Tensor, v: Tensor, locations: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of keys, values and locations."""
    image_heads = len(k) * len(table)
    num_queries, num_keys = shared['num_queries'], shared['num_keys']
    num_parts = _num_parts(
        image_heads * triton.cdiv(num_keys, 64), triton.cdiv(num_queries, 64)
    )
    # Parts are added in float32 at least.
    dtype = k.dtype if num_parts == 1 else table.dtype
    grad_k, grad_v = (k.new_empty(num_parts, *k.shape, dtype=dtype) for _ in range(2))
    grad_locations = locations.new_empty(num_parts, len(k), len(table), num_keys, 2)

    def run(launch: Launch) -> None:
        blocks = triton.cdiv(num_keys, launch.tile)
        _backward_keys[image_heads * blocks, num_parts](
            **shared,
            grad_k_ptr=grad_k,
            grad_v_ptr=grad_v,
            grad_locations_ptr=grad_locations,
            BLOCK_K=launch.tile,
            BLOCK_Q=launch.step,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    launches = keys_launches(_row_bytes(k, table))
    _launch(_backward_keys, run, launches, shared)
    # Heads of a group share their locations.
    grad_locations = grad_locations.unflatten(2, (locations.shape[1], -1)).sum((0, 3))
    return (
        _sum_parts(grad_k).to(k.dtype),
        _sum_parts(grad_v).to(v.dtype),
        grad_locations.view(locations.shape),
    )


def _gradient_of_table(shared: dict[str, Any], q: Tensor, table: Tensor) -> Tensor:
    """Return the gradient of the table."""
    blocks = [min(block_size(n), MAX_TABLE_BLOCK) for n in table.shape[1:]]
    num_tiles = prod(map(triton.cdiv, table.shape[1:], blocks))
    num_parts = _num_parts(len(q) * len(table) * num_tiles, q.shape[1])
    partial_sums = table.new_empty(num_parts, len(q), *table.shape)

    def run(launch: Launch) -> None:
        _backward_table[len(q) * len(table), num_tiles, num_parts](
            **shared,
            grad_table_ptr=partial_sums,
            BLOCK_Y=blocks[0],
            BLOCK_X=blocks[1],
            BLOCK_Q=launch.tile,
            BLOCK_K=launch.step,
            num_warps=launch.num_warps,
            num_stages=launch.num_stages,
        )

    launches = table_launches(_row_bytes(q, table), blocks, q.shape[2])
    _launch(_backward_table, run, launches, shared)
    return partial_sums.sum((0, 1))


def _num_parts(programs: int, limit: int) -> int:
    """Return into how many parts the queries of a program are divided."""
    return min(triton.cdiv(MIN_PROGRAMS, max(programs, 1)), limit)


def _sum_parts(x: Tensor) -> Tensor:
    return x[0] if len(x) == 1 else x.sum(0)


def _launch(
    kernel: Any,
    run: Callable[[Launch], None],
    launches: Sequence[Launch],
    arguments: dict[str, Any],
) -> None:
    """Run the fastest launch for sizes of an order of magnitude."""
    compiled = (x for name, x in arguments.items() if name.isupper())
    octaves = (arguments[name].bit_length() for name in SIZES)
    q = arguments['q_ptr']
    key = kernel.__name__, len(q).bit_length(), *compiled, *octaves
    with torch.cuda.device_of(q):
        launch_fastest(run, launches, q, *key)


def forward_launches(row_bytes: int) -> tuple[Launch, ...]:
    """List launches of the forward kernel, the best in theory first.

    Theory: a tile of pairs of query and key is limited by registers, of which every
    pair needs about ten. Compiled for 32 channels in bfloat16, none are spilled. Each
    warp multiplies 16 rows of a tile.

    Args:
        row_bytes: Size of a head of a token.

    Returns:
        Tiles are of queries, steps of keys.
    """
    if row_bytes > WIDE:
        return (Launch(tile=32, step=16, num_warps=2, num_stages=1),)
    return (
        Launch(tile=64, step=32, num_warps=4, num_stages=3),
        Launch(tile=64, step=16, num_warps=4, num_stages=2),
    )


def backward_launches(row_bytes: int) -> tuple[Launch, ...]:
    """Return launches of the kernel over queries, where rows of products are keys."""
    return tuple(x._replace(tile=x.step, step=x.tile) for x in keys_launches(row_bytes))


def keys_launches(row_bytes: int) -> tuple[Launch, ...]:
    """Return launches of the kernel over keys: tiles of keys, steps of queries."""
    if row_bytes > WIDE:
        return (Launch(tile=32, step=16, num_warps=2, num_stages=1),)
    return (
        Launch(tile=64, step=32, num_warps=4, num_stages=2),
        Launch(tile=64, step=16, num_warps=4, num_stages=2),
    )


def table_launches(
    row_bytes: int, blocks: Sequence[int], width: int
) -> tuple[Launch, ...]:
    """List launches of the kernel over the table, the best in theory first.

    Args:
        row_bytes: Size of a head of a token.
        blocks: Entries of the table that a program sums, down and across.
        width: Number of columns of queries.

    Returns:
        Tiles are of queries, steps of keys.
    """
    is_wide = row_bytes > WIDE
    # The sums of a row of the table, for every key, take registers, too.
    step = min(32 if is_wide else 64, 64 * 64 // blocks[1])
    large = Launch(
        tile=MIN_BLOCK if is_wide else min(block_size(width), 64),
        step=step,
        num_warps=8 if prod(blocks) >= 64 * 64 else 4,
        num_stages=1,
    )
    return large, large._replace(step=step // 2, num_warps=large.num_warps // 2)


@triton.jit
def _load_points(rows_ptr, columns_ptr, queries, width, num_queries):
    """Load the coordinates (y, x) of queries."""
    inside = queries < num_queries
    y = tl.load(rows_ptr + queries // width, mask=inside, other=0.0)
    x = tl.load(columns_ptr + queries % width, mask=inside, other=0.0)
    return y, x


@triton.jit
def _load_keys(
    k_ptr, k_stride, v_ptr, v_stride, locations_ptr, image, head, keys, num_keys,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load keys, values and coordinates (y, x) of keys."""
    inside = keys < num_keys
    tokens = image * num_keys + keys
    k = load_rows(k_ptr, tokens, inside, k_stride, head, DIM, BLOCK_D)
    v = load_rows(v_ptr, tokens, inside, v_stride, head, DIM, BLOCK_D)
    group = image * GROUPS + head // (HEADS // GROUPS)
    points = locations_ptr + (group * num_keys + keys) * 2
    y = tl.load(points, mask=inside, other=0.0)
    x = tl.load(points + 1, mask=inside, other=0.0)
    return k, v, y, x


@triton.jit
def _load_queries(
    q_ptr, q_stride, grad_ptr, sums_ptr, means_ptr, image, head, queries, inside,
    num_queries, HEADS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Load queries, the gradient of their output, and sums and means of their logits.

    Queries outside have an infinite sum, and so weights of zero.
    """
    tokens = image * num_queries + queries
    q = load_rows(q_ptr, tokens, inside, q_stride, head, DIM, BLOCK_D)
    grad = load_rows(grad_ptr, tokens, inside, HEADS * DIM, head, DIM, BLOCK_D)
    offsets = (image * HEADS + head) * num_queries + queries
    sums = tl.load(sums_ptr + offsets, mask=inside, other=float('inf'))
    means = tl.load(means_ptr + offsets, mask=inside, other=0.0)
    return q, grad, sums, means


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
    q_ptr, q_stride, k_ptr, k_stride, v_ptr, v_stride, locations_ptr, table_ptr,
    rows_ptr, columns_ptr, out_ptr, sums_ptr,
    width, num_queries, num_keys, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
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
    inside = queries < num_queries
    tokens = image * num_queries + queries
    q = load_rows(q_ptr, tokens, inside, q_stride, head, DIM, BLOCK_D)
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
        k, v, keys_y, keys_x = _load_keys(
            k_ptr, k_stride, v_ptr, v_stride, locations_ptr, image, head, keys,
            num_keys, HEADS, GROUPS, DIM, BLOCK_D,
        )  # fmt: skip
        bias, _, _ = _interpolate(table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W)
        logits = dot(q, tl.trans(k), PRECISION) * (SCALE * LOG2_E) + tl.trans(bias)
        logits = tl.where((keys < num_keys)[None], logits, float('-inf'))
        # A greater logit rescales the sums so far.
        new_peak = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp2(logits - new_peak[:, None])
        rescale = tl.exp2(peak - new_peak)
        total = total * rescale + tl.sum(weights, 1)
        out = out * rescale[:, None] + dot(weights.to(v.dtype), v, PRECISION)
        peak = new_peak

    # 3. Normalize and store.
    out = out / total[:, None]
    store_rows(out_ptr, out, tokens, inside, HEADS * DIM, head, DIM, BLOCK_D)
    sums = sums_ptr + image_head * num_queries + queries
    tl.store(sums, peak + tl.log2(total), mask=inside)


@triton.jit
def _grad_logits(
    q, k, v, grad, bias, sums, means, is_key,
    SCALE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the weights and the gradient of the logits, (keys, queries)."""
    logits = dot(k, tl.trans(q), PRECISION) * (SCALE * LOG2_E) + bias
    logits = tl.where(is_key[:, None], logits, float('-inf'))
    weights = tl.exp2(logits - sums[None])
    grad_weights = dot(v, tl.trans(grad), PRECISION)
    return weights, weights * (grad_weights - means[None])


@triton.jit(do_not_specialize=SIZES)
def _backward_queries(
    q_ptr, q_stride, k_ptr, k_stride, v_ptr, v_stride, locations_ptr, table_ptr,
    rows_ptr, columns_ptr, grad_ptr, sums_ptr, means_ptr, out_ptr, grad_q_ptr,
    width, num_queries, num_keys, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, SCALE: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a block of queries of an image and a head.

    And the means over the keys of the gradient of their weights, weighted by these,
    which the gradient of the softmax subtracts.
    """
    # 1. Load the queries of this program, and what the forward pass computed for them.
    blocks = tl.cdiv(num_queries, BLOCK_Q)
    image_head = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = image_head // HEADS, image_head % HEADS
    queries = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = queries < num_queries
    tokens = image * num_queries + queries
    q = load_rows(q_ptr, tokens, inside, q_stride, head, DIM, BLOCK_D)
    grad = load_rows(grad_ptr, tokens, inside, HEADS * DIM, head, DIM, BLOCK_D)
    out = load_rows(out_ptr, tokens, inside, HEADS * DIM, head, DIM, BLOCK_D)
    y, x = _load_points(rows_ptr, columns_ptr, queries, width, num_queries)
    table_ptr += head * ((TABLE_H + 2 * BORDER) * (TABLE_W + 2 * BORDER))
    offsets = image_head * num_queries + queries
    sums = tl.load(sums_ptr + offsets, mask=inside, other=float('inf'))

    # 2. The mean of the gradient of the weights is that of the output times it.
    dtype = sums_ptr.dtype.element_ty
    means = tl.sum(grad.to(dtype) * out.to(dtype), 1)
    tl.store(means_ptr + offsets, means, mask=inside)

    # 3. Over the keys: back through the softmax, and to the queries.
    grad_q = tl.zeros([BLOCK_Q, BLOCK_D], dtype)
    for first in range(0, num_keys, BLOCK_K):
        keys = first + tl.arange(0, BLOCK_K)
        k, v, keys_y, keys_x = _load_keys(
            k_ptr, k_stride, v_ptr, v_stride, locations_ptr, image, head, keys,
            num_keys, HEADS, GROUPS, DIM, BLOCK_D,
        )  # fmt: skip
        bias, _, _ = _interpolate(table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W)
        _, grad_logits = _grad_logits(
            q, k, v, grad, bias, sums, means, keys < num_keys, SCALE, PRECISION
        )
        grad_q += dot(tl.trans(grad_logits.to(k.dtype)), k, PRECISION)

    # 4. Store.
    grad_q *= SCALE
    store_rows(grad_q_ptr, grad_q, tokens, inside, HEADS * DIM, head, DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _backward_keys(
    q_ptr, q_stride, k_ptr, k_stride, v_ptr, v_stride, locations_ptr, table_ptr,
    rows_ptr, columns_ptr, grad_ptr, sums_ptr, means_ptr,
    grad_k_ptr, grad_v_ptr, grad_locations_ptr,
    width, num_queries, num_keys, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
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
    k, v, keys_y, keys_x = _load_keys(
        k_ptr, k_stride, v_ptr, v_stride, locations_ptr, image, head, keys,
        num_keys, HEADS, GROUPS, DIM, BLOCK_D,
    )  # fmt: skip
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
        inside = queries < end
        q, grad, sums, means = _load_queries(
            q_ptr, q_stride, grad_ptr, sums_ptr, means_ptr, image, head,
            queries, inside, num_queries, HEADS, DIM, BLOCK_D,
        )  # fmt: skip
        y, x = _load_points(rows_ptr, columns_ptr, queries, width, num_queries)
        bias, slope_y, slope_x = _interpolate(
            table_ptr, y, x, keys_y, keys_x, TABLE_H, TABLE_W
        )
        weights, grad_logits = _grad_logits(
            q, k, v, grad, bias, sums, means, keys < num_keys, SCALE, PRECISION
        )
        grad_v += dot(weights.to(grad.dtype), grad, PRECISION)
        grad_k += dot(grad_logits.to(q.dtype), q, PRECISION)
        grad_y += tl.sum(grad_logits * slope_y, 1)
        grad_x += tl.sum(grad_logits * slope_x, 1)

    # 3. From indices to locations, which have the opposite sign (_table_index); store.
    grad_k *= SCALE
    is_key = keys < num_keys
    image_part = part * (tl.num_programs(0) // blocks // HEADS) + image
    tokens = image_part * num_keys + keys
    store_rows(grad_k_ptr, grad_k, tokens, is_key, HEADS * DIM, head, DIM, BLOCK_D)
    store_rows(grad_v_ptr, grad_v, tokens, is_key, HEADS * DIM, head, DIM, BLOCK_D)
    points = ((image_part * HEADS + head) * num_keys + keys) * 2
    points += grad_locations_ptr
    tl.store(points, grad_y * ((1 - TABLE_H) / 4 / LOG2_E), mask=is_key)
    tl.store(points + 1, grad_x * ((1 - TABLE_W) / 4 / LOG2_E), mask=is_key)


@triton.jit(do_not_specialize=SIZES)
def _backward_table(
    q_ptr, q_stride, k_ptr, k_stride, v_ptr, v_stride, locations_ptr, table_ptr,
    rows_ptr, columns_ptr, grad_ptr, sums_ptr, means_ptr, grad_table_ptr,
    width, num_queries, num_keys, TABLE_H: tl.constexpr, TABLE_W: tl.constexpr,
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
    # step, so that this many columns at most are less than an entry away from another.
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
    for first in range(0, num_keys, BLOCK_K):
        # 3. Load keys and values; the first column of queries that adds to an entry.
        keys = first + tl.arange(0, BLOCK_K)
        k, v, keys_y, keys_x = _load_keys(
            k_ptr, k_stride, v_ptr, v_stride, locations_ptr, image, head, keys,
            num_keys, HEADS, GROUPS, DIM, BLOCK_D,
        )  # fmt: skip
        index_x = _table_index(x_begin, keys_x[:, None], TABLE_W)  # of the first column
        distance = entries_x[None] - index_x  # (keys, entries)
        nearest = tl.floor((distance - 1) * per_entry) + 1

        for row in range(part * length, tl.minimum(part * length + length, height)):
            y = tl.load(rows_ptr + row)
            across = tl.zeros([BLOCK_K, BLOCK_X], dtype)
            for left in range(0, width, BLOCK_Q):
                # 4. The gradient of the logits of a block of a row of queries.
                columns = left + tl.arange(0, BLOCK_Q)
                queries, inside = row * width + columns, columns < width
                q, grad, sums, means = _load_queries(
                    q_ptr, q_stride, grad_ptr, sums_ptr, means_ptr, image, head,
                    queries, inside, num_queries, HEADS, DIM, BLOCK_D,
                )  # fmt: skip
                x = tl.load(columns_ptr + columns, mask=inside, other=0.0)
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
            grad_table += dot(weights_y.to(dtype), across, PRECISION)

    # 7. Store.
    image_part = part * (tl.num_programs(0) // HEADS) + image
    rows = (image_part * HEADS + head) * TABLE_H + entries_y
    entries = rows[:, None] * TABLE_W + entries_x[None]
    inside = (entries_y < TABLE_H)[:, None] & (entries_x < TABLE_W)[None]
    tl.store(grad_table_ptr + entries, grad_table, mask=inside)
