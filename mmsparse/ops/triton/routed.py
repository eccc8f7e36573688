"""Triton kernels of routed attention, which read the routed regions without a copy.

Nothing of the size of queries times keys is stored. The forward pass is that of
FlashAttention-2 (arXiv 2307.08691), over the keys of all routed regions as one list. A
step over that list may hold keys of several regions: 16 regions of 4 tokens (BiFormer's
third stage at 224x224) fill a step of 64 keys. The 4 queries of a region fill a quarter
of the 16 rows of the smallest matrix product, so a quarter of the products is useful;
one region after the other, it would be a sixteenth.

The backward pass has one kernel over queries for their gradient and one over keys for
theirs, so that no two programs write to the same memory and results are deterministic.
The second goes over the list of all queries that read a region. Trained routes are
skewed, all regions may read one: a list is cut into segments of bounded length. Each
has a separate program, and a third kernel adds the partial sums of regions with several
segments.
"""
# mypy: disable-error-code="no-untyped-def"

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.regions import Size
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

MIN_SEGMENT = 128  # queries; two steps, or loads would not overlap with products
# Arguments that are not compiled in: images of all sizes run the same kernels.
SIZES = ['regions', 'columns', 'num_routes', 'q_height', 'q_width']
SIZES += ['k_height', 'k_width', 'segment', 'chunks']


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    grid: Size,
    num_heads: int,
    scale: float,
) -> Tensor:
    """Attend from the tokens of every region to those of its routed regions.

    Args:
        q: Queries, (B, H, W, D); H and W are multiples of the grid.
        k: Keys, (B, H', W', D); H' and W' are multiples of the grid.
        v: Values, (B, H', W', C).
        routes: Regions that each region attends to, without duplicates, (B, R, K).
        grid: Number R of regions, (rows, columns).
        num_heads: Number of heads; divides D and C.
        scale: Factor on the dot products of queries and keys.

    Returns:
        (B, H, W, C).
    """
    return _routed_attention(q, k, v, routes, grid[1], num_heads, scale)[0]


@torch.library.custom_op('mmsparse::routed_attention', mutates_args=())
def _routed_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    columns: int,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output, and the log-sum-exp (base 2) of logits, (B, R, heads, L)."""
    out, sums = _empty_outputs(q, k, v, routes, columns, num_heads, scale)
    shared = _shared_arguments(q, k, v, routes, columns, num_heads, scale)
    pointers = dict(routes_ptr=routes.contiguous(), out_ptr=out, sums_ptr=sums)
    _run_over_queries(_forward, shared | pointers)
    return out, sums


@_routed_attention.register_fake
def _empty_outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    columns: int,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, height, width, _ = q.shape
    regions = routes.shape[1]
    sums = (batch, regions, num_heads, height * width // regions)
    return (
        v.new_empty(batch, height, width, v.shape[-1]),
        q.new_empty(sums, dtype=precise_dtype(q)),
    )


@torch.library.custom_op('mmsparse::routed_attention_backward', mutates_args=())
def _routed_attention_backward(
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    columns: int,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values."""
    grad_q, grad_k, grad_v = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)
    )
    stats = sums.new_empty(*sums.shape, 2)
    shared = _shared_arguments(q, k, v, routes, columns, num_heads, scale)
    shared |= dict(grad_ptr=grad.contiguous(), sums_ptr=sums, stats_ptr=stats)
    # The kernel over queries stores statistics that the one over keys reads.
    pointers = dict(routes_ptr=routes.contiguous(), out_ptr=out, grad_q_ptr=grad_q)
    _run_over_queries(_backward_queries, shared | pointers)
    pointers = dict(grad_k_ptr=grad_k, grad_v_ptr=grad_v)
    _run_over_keys(shared | pointers, routes)
    return grad_q, grad_k, grad_v


@_routed_attention_backward.register_fake
def _empty_gradients(
    grad: Tensor,
    out: Tensor,
    sums: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.columns, ctx.num_heads, ctx.scale = inputs
    ctx.save_for_backward(*output, *tensors)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _routed_attention_backward(
        grad, *ctx.saved_tensors, ctx.columns, ctx.num_heads, ctx.scale
    )
    return *gradients, None, None, None, None


_routed_attention.register_autograd(_backward, setup_context=_setup_context)


def _shared_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    routes: Tensor,
    columns: int,
    num_heads: int,
    scale: float,
) -> dict[str, Any]:
    """Return the arguments that all kernels have; upper-case ones are compiled in."""
    arguments: dict[str, Any] = {}
    for name, x in dict(q=q, k=k, v=v).items():
        matrix = token_matrix(x)
        arguments |= {f'{name}_ptr': matrix, f'{name}_stride': matrix.stride(0)}
    rows = routes.shape[1] // columns
    key_channels, value_channels = q.shape[-1] // num_heads, v.shape[-1] // num_heads
    return arguments | dict(
        scale=scale,
        regions=routes.shape[1],
        columns=columns,
        num_routes=routes.shape[2],
        q_height=q.shape[1] // rows,
        q_width=q.shape[2] // columns,
        k_height=k.shape[1] // rows,
        k_width=k.shape[2] // columns,
        HEADS=num_heads,
        KEY_CHANNELS=key_channels,
        VALUE_CHANNELS=value_channels,
        BLOCK_D=block_size(key_channels),
        BLOCK_C=block_size(value_channels),
        PRECISION=dot_precision(),
    )


def _run_over_queries(kernel: Any, arguments: dict[str, Any]) -> None:
    """Run a kernel that goes over the keys of the routes of every region."""
    batch, regions, num_routes = arguments['routes_ptr'].shape
    queries = arguments['q_height'] * arguments['q_width']
    keys = arguments['k_height'] * arguments['k_width']
    _run(kernel, arguments, batch * regions, queries, num_routes * keys)


def _run_over_keys(arguments: dict[str, Any], routes: Tensor) -> None:
    """Run the kernels that go over the queries of the readers of every region."""
    batch, regions, num_routes = routes.shape
    queries = arguments['q_height'] * arguments['q_width']
    keys = arguments['k_height'] * arguments['k_width']
    # 1. Cut lists of readers into segments of twice the average: so most regions have
    # only one, and no program takes more than twice the time of the average.
    segment = max(2 * num_routes, triton.cdiv(MIN_SEGMENT, queries))
    chunks = triton.cdiv(regions * num_routes, segment) if segment < regions else 0
    arguments |= _readers(routes) | dict(segment=segment, chunks=chunks)
    # 2. A program for the first segment of every region and one for every chunk of that
    # length of the list of all readers: at most one later segment begins in it.
    count = batch * (regions + chunks)
    for x in ('k', 'v'):
        arguments[f'partial_{x}_ptr'] = arguments['sums_ptr'].new_empty(
            count * keys if chunks else 0, arguments[f'grad_{x}_ptr'].shape[-1]
        )
    listed = min(segment, regions) * queries
    _run(_backward_keys, arguments, count, keys, listed)
    # 3. Add the partial sums of regions with several segments.
    if chunks:
        channels = arguments['BLOCK_D'] + arguments['BLOCK_C']
        tile = min(block_size(keys), max(2**12 // channels, MIN_BLOCK))
        launch = Launch(tile, step=0, num_warps=4, num_stages=1)
        _launch(_add_segments, arguments, batch * regions, keys, launch)


def _readers(routes: Tensor) -> dict[str, Tensor]:
    """Invert routes: list the regions that attend to each region.

    Args:
        routes: (B, R, K).

    Returns:
        Arguments of the kernels: the key regions of all routes of an image, sorted; the
        routes in that order, (B, R * K) both; and where each region begins in these
        lists, (B, R + 1).
    """
    batch, regions, _ = routes.shape
    sorted_routes, order = routes.flatten(1).sort(dim=1, stable=True)
    bounds = _region_bounds(batch, regions, routes.device)
    starts = torch.searchsorted(sorted_routes, bounds, out_int32=True)
    return dict(sorted_ptr=sorted_routes, order_ptr=order, starts_ptr=starts)


@cached_by_size
def _region_bounds(batch: int, regions: int, device: torch.device) -> Tensor:
    bounds = torch.arange(regions + 1, device=device)
    return bounds.expand(batch, -1).contiguous()


def _run(
    kernel: Any, arguments: dict[str, Any], count: int, tokens: int, listed: int
) -> None:
    """Run a kernel, with a program for every tile and head of every region.

    Args:
        kernel: Kernel of this module.
        arguments: Its arguments without those of the launch, and others.
        count: Number of regions, or segments, of all images.
        tokens: Tokens of a region.
        listed: Tokens in the list that a program goes over.
    """
    q, channels = arguments['q_ptr'], arguments['BLOCK_D'] + arguments['BLOCK_C']
    sizes = (block_size(tokens), block_size(listed), channels * q.element_size())
    exact = arguments['PRECISION'] == 'ieee' and q.dtype == torch.float32
    launches = launch_table(*sizes, exact)
    run = partial(_launch, kernel, arguments, count, tokens)
    launch_fastest(run, launches, q, kernel.__name__, *sizes)


def launch_table(
    tokens: int, listed: int, token_bytes: int, exact: bool = False
) -> list[Launch]:
    """Return the launches to try on a GPU, the best in theory first.

    Args:
        tokens: Tokens of a region, rounded up to a power of 2.
        listed: Tokens in the list that a program goes over, rounded up likewise.
        token_bytes: Bytes of a key and a value of one head, their channels rounded up.
        exact: Whether products of float32 are exact, without tensor cores.

    Returns:
        Launches.
    """
    # Theory. As compiled for compute capabilities 8.0 and 9.0, the first ones spill no
    # registers, or a few, and take at most 99 KiB of shared memory: the tile, and two
    # steps of keys and values.
    tile = min(tokens, 64, max(2**15 // token_bytes, MIN_BLOCK))
    step = min(listed, 64 if token_bytes <= 128 else 32)
    step = min(step, max(2**14 // token_bytes, MIN_BLOCK))
    pairs = [
        (tile, step),
        (tile // 2, step),  # more programs, and less padding of 77 tokens
        (tile * 2, step),  # keys are read less often
        (tile, step // 2),  # smaller programs: more of them on a multiprocessor
    ]
    return [
        Launch(
            tile,
            step,
            _num_warps(tile * step * token_bytes, exact),
            # Three: the routes of a step, its loads and its products overlap with those
            # of others. In a list of a single step there are no others.
            num_stages=3 if listed > step else 1,
        )
        for tile, step in pairs
        if MIN_BLOCK <= tile <= tokens and step >= MIN_BLOCK
    ]


def _num_warps(work: int, exact: bool) -> int:
    """Return the warps among which the registers of a step are distributed."""
    num_warps = max(work // 2**17, 1)  # one for 16x64 logits in half precision
    # Without tensor cores, every thread holds whole rows of the operands.
    return min(max(2 * num_warps, 4) if exact else num_warps, 8)


def _launch(
    kernel: Any, arguments: dict[str, Any], count: int, tokens: int, launch: Launch
) -> None:
    """Run a kernel with a launch, see :func:`_run`."""
    arguments = arguments | dict(TILE=launch.tile, STEP=launch.step)
    known = {name: arguments[name] for name in kernel.arg_names}
    programs = count * triton.cdiv(tokens, launch.tile) * arguments['HEADS']
    with torch.cuda.device_of(arguments['q_ptr']):
        kernel[(programs,)](
            **known, num_warps=launch.num_warps, num_stages=launch.num_stages
        )


@triton.jit
def _program_tile(tokens, HEADS: tl.constexpr, TILE: tl.constexpr):
    """Return the region (or segment), the tokens in it and the head of a program.

    Heads are neighbors, which read the same rows; then tiles and regions.
    """
    tiles = tl.cdiv(tokens, TILE)
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS
    return tile // tiles, tile % tiles * TILE + tl.arange(0, TILE), head


@triton.jit
def _token_rows(region, tokens, columns, height, width):
    """Return the rows of tokens of regions in the matrix of all tokens of all images.

    Regions are counted over all images. As these lie below each other, the row of such
    a region in the grid of all is also that of its image in the batch.
    """
    y = region // columns * height + tokens // width
    x = region % columns * width + tokens % width
    return y * (columns * width) + x


@triton.jit
def _listed_regions(list_ptr, flat, tokens, count):
    """Load the regions of tokens that are counted over a list of regions."""
    return tl.load(list_ptr + flat // tokens, mask=flat < count, other=0).to(tl.int32)


@triton.jit(do_not_specialize=SIZES)
def _forward(
    q_ptr, k_ptr, v_ptr, routes_ptr, out_ptr, sums_ptr, scale,
    q_stride, k_stride, v_stride,
    regions, columns, num_routes, q_height, q_width, k_height, k_width,
    HEADS: tl.constexpr, KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute the output of a tile of queries of a region and a head.

    And the log-sum-exp of their logits, which the backward pass needs.
    """
    # 1. Load the queries of this program.
    queries = q_height * q_width
    region, tokens, head = _program_tile(queries, HEADS, TILE)
    q_rows = _token_rows(region, tokens, columns, q_height, q_width)
    valid = tokens < queries
    q = load_rows(q_ptr, q_rows, valid, q_stride, head, KEY_CHANNELS, BLOCK_D)

    # 2. Over the keys of all routed regions, step by step: the greatest logit so far,
    # and the sums of weights and of weighted values relative to it. The routes of a
    # step are loaded one step ahead, so that its keys can be, too.
    dtype = sums_ptr.dtype.element_ty
    top = tl.full([TILE], float('-inf'), dtype)
    total = tl.zeros([TILE], dtype)
    out = tl.zeros([TILE, BLOCK_C], dtype)
    factor = tl.full([], scale * LOG2_E, dtype)
    first = region // regions * regions  # region of this image
    keys = k_height * k_width
    count = num_routes * keys
    routes_ptr += region * num_routes
    ahead = _listed_regions(routes_ptr, tl.arange(0, STEP), keys, count)
    for start in range(0, count, STEP):
        flat = start + tl.arange(0, STEP)
        rows = _token_rows(first + ahead, flat % keys, columns, k_height, k_width)
        ahead = _listed_regions(routes_ptr, flat + STEP, keys, count)
        inside = flat < count
        k = load_rows(k_ptr, rows, inside, k_stride, head, KEY_CHANNELS, BLOCK_D)
        v = load_rows(v_ptr, rows, inside, v_stride, head, VALUE_CHANNELS, BLOCK_C)
        logits = dot(q, tl.trans(k), PRECISION) * factor
        logits = tl.where(inside[None], logits, float('-inf'))
        # A greater logit rescales the sums so far.
        new_top = tl.maximum(top, tl.max(logits, 1))
        weights = tl.exp2(logits - new_top[:, None])
        rescale = tl.exp2(top - new_top)
        total = total * rescale + tl.sum(weights, 1)
        out = out * rescale[:, None] + dot(weights.to(v.dtype), v, PRECISION)
        top = new_top

    # 3. Normalize and store.
    out = out / total[:, None]
    stride = HEADS * VALUE_CHANNELS
    store_rows(out_ptr, out, q_rows, valid, stride, head, VALUE_CHANNELS, BLOCK_C)
    sums_ptr += (region * HEADS + head).to(tl.int64) * queries
    tl.store(sums_ptr + tokens, top + tl.log2(total), mask=valid)


@triton.jit(do_not_specialize=SIZES)
def _backward_queries(
    q_ptr, k_ptr, v_ptr, routes_ptr, out_ptr, sums_ptr, grad_ptr, scale,
    stats_ptr, grad_q_ptr,
    q_stride, k_stride, v_stride,
    regions, columns, num_routes, q_height, q_width, k_height, k_width,
    HEADS: tl.constexpr, KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute the gradient of a tile of queries of a region and a head.

    And the mean of the gradient of their weights, weighted by them, which the gradient
    of the softmax subtracts.
    """
    # 1. Load the queries of this program, and what the forward pass kept of them.
    queries = q_height * q_width
    region, tokens, head = _program_tile(queries, HEADS, TILE)
    q_rows = _token_rows(region, tokens, columns, q_height, q_width)
    valid = tokens < queries
    q = load_rows(q_ptr, q_rows, valid, q_stride, head, KEY_CHANNELS, BLOCK_D)
    stride = HEADS * VALUE_CHANNELS
    grad = load_rows(grad_ptr, q_rows, valid, stride, head, VALUE_CHANNELS, BLOCK_C)
    out = load_rows(out_ptr, q_rows, valid, stride, head, VALUE_CHANNELS, BLOCK_C)
    offsets = (region * HEADS + head).to(tl.int64) * queries + tokens
    sums = tl.load(sums_ptr + offsets, mask=valid, other=0.0)

    # 2. That mean: it equals the dot product of output and gradient. Store it next
    # to the log-sum-exp.
    dtype = sums_ptr.dtype.element_ty
    means = tl.sum(grad.to(dtype) * out.to(dtype), 1)
    pairs = stats_ptr + 2 * offsets[:, None] + tl.arange(0, 2)[None]
    tl.store(pairs, tl.join(sums, means), mask=valid[:, None])

    # 3. Over the keys of all routed regions, as in the forward pass: the weights again,
    # from the log-sum-exp, and the gradient of the logits.
    grad_q = tl.zeros([TILE, BLOCK_D], dtype)
    factor = tl.full([], scale * LOG2_E, dtype)
    first = region // regions * regions  # region of this image
    keys = k_height * k_width
    count = num_routes * keys
    routes_ptr += region * num_routes
    ahead = _listed_regions(routes_ptr, tl.arange(0, STEP), keys, count)
    for start in range(0, count, STEP):
        flat = start + tl.arange(0, STEP)
        rows = _token_rows(first + ahead, flat % keys, columns, k_height, k_width)
        ahead = _listed_regions(routes_ptr, flat + STEP, keys, count)
        inside = flat < count
        k = load_rows(k_ptr, rows, inside, k_stride, head, KEY_CHANNELS, BLOCK_D)
        v = load_rows(v_ptr, rows, inside, v_stride, head, VALUE_CHANNELS, BLOCK_C)
        logits = dot(q, tl.trans(k), PRECISION) * factor
        logits = tl.where(inside[None], logits, float('-inf'))
        weights = tl.exp2(logits - sums[:, None])
        grad_weights = dot(grad, tl.trans(v), PRECISION)
        grad_logits = weights * (grad_weights - means[:, None])
        grad_q += dot(grad_logits.to(k.dtype), k, PRECISION)

    # 4. Store.
    grad_q *= tl.full([], scale, dtype)
    stride = HEADS * KEY_CHANNELS
    store_rows(grad_q_ptr, grad_q, q_rows, valid, stride, head, KEY_CHANNELS, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _backward_keys(
    q_ptr, k_ptr, v_ptr, stats_ptr, grad_ptr, scale,
    sorted_ptr, order_ptr, starts_ptr,
    grad_k_ptr, grad_v_ptr, partial_k_ptr, partial_v_ptr,
    q_stride, k_stride, v_stride,
    regions, columns, num_routes, q_height, q_width, k_height, k_width,
    segment, chunks,
    HEADS: tl.constexpr, KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
    TILE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a tile of keys and values of a segment and a head."""
    # 1. Find the segment of this program: the first one of a region, or else the one
    # that begins in its chunk of the list of readers. That is a later one of the region
    # at the beginning of the chunk, for segments of two regions begin further apart.
    keys = k_height * k_width
    slot, tokens, head = _program_tile(keys, HEADS, TILE)
    image = slot // (regions + chunks)
    number = slot % (regions + chunks)
    is_first = number < regions
    chunk_start = tl.maximum(number - regions, 0) * segment
    lists = image * regions * num_routes
    region = tl.load(sorted_ptr + lists + chunk_start).to(tl.int32)
    region = tl.where(is_first, number, region)
    starts_ptr += image * (regions + 1) + region
    start, end = tl.load(starts_ptr), tl.load(starts_ptr + 1)
    first = start + tl.cdiv(chunk_start - start, segment) * segment
    first = tl.where(is_first, start, first)
    exists = is_first | ((first > start) & (first < end))
    if not exists:
        return

    # 2. Load the keys and values of this program.
    k_rows = _token_rows(image * regions + region, tokens, columns, k_height, k_width)
    valid = tokens < keys
    k = load_rows(k_ptr, k_rows, valid, k_stride, head, KEY_CHANNELS, BLOCK_D)
    v = load_rows(v_ptr, k_rows, valid, v_stride, head, VALUE_CHANNELS, BLOCK_C)

    # 3. Over the queries of the regions that attend to them: logits and weights as in
    # the forward pass, transposed.
    dtype = stats_ptr.dtype.element_ty
    grad_k = tl.zeros([TILE, BLOCK_D], dtype)
    grad_v = tl.zeros([TILE, BLOCK_C], dtype)
    factor = tl.full([], scale * LOG2_E, dtype)
    queries = q_height * q_width
    count = tl.minimum(end - first, segment) * queries
    order_ptr += lists + first
    ahead = _listed_regions(order_ptr, tl.arange(0, STEP), queries, count)
    for begin in range(0, count, STEP):
        flat = begin + tl.arange(0, STEP)
        reader = image * regions + ahead // num_routes
        rows = _token_rows(reader, flat % queries, columns, q_height, q_width)
        offsets = (reader * HEADS + head).to(tl.int64) * queries + flat % queries
        ahead = _listed_regions(order_ptr, flat + STEP, queries, count)
        inside = flat < count
        stride = HEADS * VALUE_CHANNELS
        q = load_rows(q_ptr, rows, inside, q_stride, head, KEY_CHANNELS, BLOCK_D)
        grad = load_rows(grad_ptr, rows, inside, stride, head, VALUE_CHANNELS, BLOCK_C)
        # Beyond the end all is zero, and so is what these queries add. Both statistics
        # are loaded at once, or the compiler computes their addresses in the layout of
        # the logits, in every thread (2424 instead of 1216 instructions).
        pairs = stats_ptr + 2 * offsets[:, None] + tl.arange(0, 2)[None]
        sums, means = tl.split(tl.load(pairs, mask=inside[:, None], other=0.0))
        logits = dot(k, tl.trans(q), PRECISION) * factor
        weights = tl.exp2(logits - sums[None])
        grad_v += dot(weights.to(grad.dtype), grad, PRECISION)
        grad_weights = dot(v, tl.trans(grad), PRECISION)
        grad_logits = weights * (grad_weights - means[None])
        grad_k += dot(grad_logits.to(q.dtype), q, PRECISION)
    grad_k *= tl.full([], scale, dtype)

    # 4. Store the gradients, or one of several partial sums.
    if end - start > segment:
        _store_gradients(
            partial_k_ptr, partial_v_ptr, grad_k, grad_v, slot * keys + tokens, valid,
            head, HEADS, KEY_CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_C,
        )  # fmt: skip
    else:
        _store_gradients(
            grad_k_ptr, grad_v_ptr, grad_k, grad_v, k_rows, valid,
            head, HEADS, KEY_CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_C,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def _add_segments(
    partial_k_ptr, partial_v_ptr, starts_ptr, grad_k_ptr, grad_v_ptr,
    regions, columns, k_height, k_width, segment, chunks,
    HEADS: tl.constexpr, KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Add the partial sums of a tile of keys, if its region has several segments."""
    keys = k_height * k_width
    region, tokens, head = _program_tile(keys, HEADS, TILE)
    image = region // regions
    starts_ptr += region + image  # each image has one more than regions
    start, end = tl.load(starts_ptr), tl.load(starts_ptr + 1)
    if end - start <= segment:
        return
    valid = tokens < keys
    grad_k = tl.zeros([TILE, BLOCK_D], partial_k_ptr.dtype.element_ty)
    grad_v = tl.zeros([TILE, BLOCK_C], partial_v_ptr.dtype.element_ty)
    for first in range(start, end, segment):
        number = tl.where(first == start, region % regions, regions + first // segment)
        slot = image * (regions + chunks) + number
        rows = slot * keys + tokens
        stride = HEADS * KEY_CHANNELS
        grad_k += load_rows(
            partial_k_ptr, rows, valid, stride, head, KEY_CHANNELS, BLOCK_D
        )
        stride = HEADS * VALUE_CHANNELS
        grad_v += load_rows(
            partial_v_ptr, rows, valid, stride, head, VALUE_CHANNELS, BLOCK_C
        )
    rows = _token_rows(region, tokens, columns, k_height, k_width)
    _store_gradients(
        grad_k_ptr, grad_v_ptr, grad_k, grad_v, rows, valid,
        head, HEADS, KEY_CHANNELS, VALUE_CHANNELS, BLOCK_D, BLOCK_C,
    )  # fmt: skip


@triton.jit
def _store_gradients(
    k_ptr, v_ptr, grad_k, grad_v, rows, valid, head, HEADS: tl.constexpr,
    KEY_CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    stride = HEADS * KEY_CHANNELS
    store_rows(k_ptr, grad_k, rows, valid, stride, head, KEY_CHANNELS, BLOCK_D)
    stride = HEADS * VALUE_CHANNELS
    store_rows(v_ptr, grad_v, rows, valid, stride, head, VALUE_CHANNELS, BLOCK_C)
