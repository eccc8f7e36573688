"""Triton kernels of multi-scale deformable attention.

A program has a block of queries of one head and image. It reads the four cells around
each sampling location where they are: nothing of the size of queries times locations
times channels is stored. Nothing depends on sizes of feature maps at compile time, so
that images of many sizes share one kernel.

The gradient of values adds from many queries to one cell: in float32 (float64 for
values in it), by atomic additions, whose order and so whose last bits vary. Under
``torch.use_deterministic_algorithms`` torch's ``index_add_`` adds them instead.

Import it only where Triton is installed. Its interpreter runs the kernels on a CPU if
TRITON_INTERPRET=1 is set before.
"""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmsparse.ops.sampling import surrounding_cells
from mmsparse.ops.triton._common import launch_fastest

# Queries of a block, and warps. Theory: the kernels wait for memory, so that threads
# should have loads of 16 bytes, which are 8 channels in half precision, and a
# multiprocessor many warps.
BLOCKS = ((32, 4), (16, 4), (16, 2), (64, 8))


@torch.library.custom_op('mmsparse::multi_scale', mutates_args=())
def attend(
    value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor
) -> Tensor:
    """Sum values at sampling locations, weighted.

    Args:
        value: Values of the cells of all levels, row-major, (B, N, heads, D).
        shapes: Height and width of every level, (levels, 2).
        starts: Index of the first cell of every level, (levels,).
        points: Sampling locations, (x, y) from 0 to 1 over each level,
            (B, Q, heads, levels, points, 2), in the dtype to compute in.
        weights: (B, Q, heads, levels, points), in that dtype.

    Returns:
        (B, Q, heads, D), in the dtype of the values.
    """
    inputs = [x.contiguous() for x in (value, shapes, starts, points, weights)]
    out = value.new_empty(*points.shape[:3], value.shape[-1])
    sizes = _sizes(value, points)

    def run(launch: tuple[int, int]) -> None:
        block, num_warps = launch
        grid = _grid(points, block)
        _forward[grid](*inputs, out, **sizes, BLOCK_Q=block, num_warps=num_warps)

    _launch(run, 'forward', value, points)
    return out


@attend.register_fake
def _(
    value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor
) -> Tensor:
    return value.new_empty(*points.shape[:3], value.shape[-1])


@torch.library.custom_op('mmsparse::multi_scale_backward', mutates_args=())
def attend_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    points: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of :func:`attend`.

    Args:
        grad: Gradient of its output, (B, Q, heads, D).
        value: See :func:`attend`; so are the others.
        shapes: (levels, 2).
        starts: (levels,).
        points: (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).

    Returns:
        Gradients of ``value``, ``points`` and ``weights``.
    """
    inputs = [x.contiguous() for x in (value, shapes, starts, points, weights, grad)]
    grad_value = value.new_empty(value.shape, dtype=points.dtype)
    grad_points, grad_weights = (x.new_empty(x.shape) for x in (points, weights))
    outputs = (grad_value, grad_points, grad_weights)
    deterministic = torch.are_deterministic_algorithms_enabled()
    sizes = _sizes(value, points) | dict(SCATTER=not deterministic)

    def run(launch: tuple[int, int]) -> None:
        block, num_warps = launch
        grad_value.zero_()
        grid = _grid(points, block)
        _backward[grid](*inputs, *outputs, **sizes, BLOCK_Q=block, num_warps=num_warps)

    _launch(run, 'backward', value, points)
    if deterministic:
        _scatter(grad_value, grad, shapes, starts, points, weights)
    return grad_value.to(value.dtype), grad_points, grad_weights


@attend_backward.register_fake
def _(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    points: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        points.new_empty(points.shape),
        weights.new_empty(weights.shape),
    )


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, points, weights = attend_backward(grad, *ctx.saved_tensors)
    return value, None, None, points, weights


attend.register_autograd(_differentiate, setup_context=_save)


def _grid(points: Tensor, block: int) -> tuple[int, int]:
    """Return the number of programs: blocks of queries, and heads of all images."""
    batch, queries, heads = points.shape[:3]
    return triton.cdiv(queries, block), batch * heads


def _sizes(value: Tensor, points: Tensor) -> dict[str, Any]:
    """Return the sizes that the kernels need; those in capitals are compiled in."""
    width = value.shape[-1]
    return dict(
        cells=value.shape[1],
        queries=points.shape[1],
        HEADS=points.shape[2],
        LEVELS=points.shape[3],
        POINTS=points.shape[4],
        WIDTH=width,
        BLOCK_D=triton.next_power_of_2(width),
    )


def _scatter(
    grad_value: Tensor,
    grad: Tensor,
    shapes: Tensor,
    starts: Tensor,
    points: Tensor,
    weights: Tensor,
) -> None:
    """Add the gradient of values in place, corner by corner of every point."""
    batch, cells, num_heads, _ = grad_value.shape
    images = torch.arange(batch, device=grad.device).view(-1, 1, 1) * cells
    heads = torch.arange(num_heads, device=grad.device)
    for level, (size, start) in enumerate(zip(shapes, starts, strict=True)):
        for point in range(points.shape[4]):
            # In cells from the center of the first one; (B, Q, heads) each.
            x, y = (points[:, :, :, level, point] * size.flip(0) - 0.5).unbind(-1)
            for index, near in surrounding_cells((y, x), size.unbind()):
                rows = (images + start + index) * num_heads + heads
                share = near * weights[:, :, :, level, point]
                grad_value.view(-1, grad.shape[-1]).index_add_(
                    0, rows.flatten(), (share.unsqueeze(-1) * grad).flatten(0, 2)
                )


def _launch(
    run: Callable[[tuple[int, int]], object], name: str, value: Tensor, points: Tensor
) -> None:
    """Run a kernel with the fastest of BLOCKS for sizes of an order of magnitude.

    Args:
        run: Runs the kernel with a number of queries and of warps, any number of times.
        name: Name of the kernel.
        value: Argument of the kernel.
        points: Argument of the kernel.
    """
    octaves = points.shape[:3].numel().bit_length()
    with torch.cuda.device_of(value):  # Triton launches on the current GPU
        launch_fastest(
            run, BLOCKS, value, name, octaves, value.shape[-1], *points.shape[3:]
        )


@triton.jit(do_not_specialize=['cells', 'queries'])
def _forward(
    value_ptr, shapes_ptr, starts_ptr, points_ptr, weights_ptr, out_ptr,
    cells, queries, HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Compute the output of a block of queries of a head and image."""
    # 1. Find the queries of this program, and the values of its head and image.
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    valid = query < queries
    image = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    rows = (image * queries + query) * HEADS + head  # of points, weights and output
    value_ptr += (image * cells * HEADS + head) * WIDTH

    # 2. Over all sampling locations, add the four cells around each of them.
    out = tl.zeros([BLOCK_Q, BLOCK_D], points_ptr.dtype.element_ty)
    for level in range(LEVELS):
        height, width, start = _load_level(shapes_ptr, starts_ptr, level)
        for point in range(POINTS):
            samples = rows * (LEVELS * POINTS) + level * POINTS + point
            weight = tl.load(weights_ptr + samples, mask=valid, other=0.0)
            top, left, down, right = _locate(points_ptr, samples, valid, height, width)
            for corner in tl.static_range(4):
                near_y, near_x = _shares(down, right, corner)
                offsets, inside = _corner_offsets(
                    top, left, corner, valid, height, width, start,
                    HEADS, WIDTH, BLOCK_D,
                )  # fmt: skip
                values = tl.load(value_ptr + offsets, mask=inside, other=0.0)
                out += (weight * near_y * near_x)[:, None] * values.to(out.dtype)

    # 3. Store.
    offsets, inside = _row_offsets(rows, valid, WIDTH, BLOCK_D)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=['cells', 'queries'])
def _backward(
    value_ptr, shapes_ptr, starts_ptr, points_ptr, weights_ptr, grad_ptr,
    grad_value_ptr, grad_points_ptr, grad_weights_ptr,
    cells, queries, HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, SCATTER: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of points and weights of a block of queries of a head.

    And add to that of the values, if SCATTER.
    """
    # 1. Find the queries of this program, and load the gradient of their output.
    query = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    valid = query < queries
    image = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    rows = (image * queries + query) * HEADS + head  # of points, weights and output
    value_ptr += (image * cells * HEADS + head) * WIDTH
    grad_value_ptr += (image * cells * HEADS + head) * WIDTH
    dtype = points_ptr.dtype.element_ty
    channels, exist = _row_offsets(rows, valid, WIDTH, BLOCK_D)
    grad = tl.load(grad_ptr + channels, mask=exist, other=0.0).to(dtype)

    for level in range(LEVELS):
        height, width, start = _load_level(shapes_ptr, starts_ptr, level)
        for point in range(POINTS):
            samples = rows * (LEVELS * POINTS) + level * POINTS + point
            weight = tl.load(weights_ptr + samples, mask=valid, other=0.0)
            top, left, down, right = _locate(points_ptr, samples, valid, height, width)
            # 2. Over the four cells: the products of their values and the gradient of
            # the output make up the gradients of the weight and of the location.
            grad_weight = tl.zeros([BLOCK_Q], dtype)
            grad_x, grad_y = grad_weight, grad_weight
            for corner in tl.static_range(4):
                near_y, near_x = _shares(down, right, corner)
                offsets, inside = _corner_offsets(
                    top, left, corner, valid, height, width, start,
                    HEADS, WIDTH, BLOCK_D,
                )  # fmt: skip
                values = tl.load(value_ptr + offsets, mask=inside, other=0.0).to(dtype)
                product = tl.sum(values * grad, 1)
                grad_weight += near_y * near_x * product
                grad_y += (2 * (corner // 2) - 1) * near_x * product
                grad_x += (2 * (corner % 2) - 1) * near_y * product
                if SCATTER:
                    share = (weight * near_y * near_x)[:, None] * grad
                    tl.atomic_add(
                        grad_value_ptr + offsets, share, mask=inside, sem='relaxed'
                    )
            # 3. Store; a level has `width` and `height` cells from 0 to 1.
            tl.store(grad_weights_ptr + samples, grad_weight, mask=valid)
            tl.store(grad_points_ptr + 2 * samples, grad_x * weight * width, mask=valid)
            tl.store(
                grad_points_ptr + 2 * samples + 1, grad_y * weight * height, mask=valid
            )


@triton.jit
def _load_level(shapes_ptr, starts_ptr, level):
    """Load height, width and first cell of a level."""
    height = tl.load(shapes_ptr + 2 * level).to(tl.int32)
    width = tl.load(shapes_ptr + 2 * level + 1).to(tl.int32)
    return height, width, tl.load(starts_ptr + level).to(tl.int32)


@triton.jit
def _locate(points_ptr, samples, valid, height, width):
    """Load sampling locations: the cell before each, and the shares of the next.

    Returns:
        Row and column, and the shares of the next row and column, (queries,) each.
    """
    x = tl.load(points_ptr + 2 * samples, mask=valid, other=0.0)
    y = tl.load(points_ptr + 2 * samples + 1, mask=valid, other=0.0)
    # In cells from the center of the first one. Beyond the level by more than a cell
    # all values are zero, wherever that is; integers could not hold it.
    x = tl.minimum(tl.maximum(x * width - 0.5, -2.0), width + 1.0)
    y = tl.minimum(tl.maximum(y * height - 0.5, -2.0), height + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    return top.to(tl.int32), left.to(tl.int32), y - top, x - left


@triton.jit
def _shares(down, right, CORNER: tl.constexpr):
    """Return the shares of the row and of the column of a corner, (queries,) each.

    Corners are, in this order, those above left, above right, below left, below right.
    """
    near_y = down if CORNER // 2 else 1 - down
    near_x = right if CORNER % 2 else 1 - right
    return near_y, near_x


@triton.jit
def _corner_offsets(
    top, left, CORNER: tl.constexpr, valid, height, width, start,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return the offsets of the channels of cells, and which of them exist.

    Returns:
        (queries, BLOCK_D) each.
    """
    row, column = top + CORNER // 2, left + CORNER % 2
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    cell = start + row * width + column
    return _row_offsets(cell * HEADS, inside, WIDTH, BLOCK_D)


@triton.jit
def _row_offsets(rows, valid, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the offsets of the channels of rows, and which of them exist."""
    channels = tl.arange(0, BLOCK_D)
    offsets = rows[:, None] * WIDTH + channels[None]
    return offsets, valid[:, None] & (channels < WIDTH)[None]
