"""Bilinear sampling of feature maps, with a choice of how exporters see it.

``grid_sample`` is torch's operator, GridSample in ONNX. ``gather`` computes the same by
gathering the four cells around every sampling location, for runtimes without a correct
GridSample. ``plugin`` makes multi-scale deformable attention one node of the graph,
and samples by gathers elsewhere.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops.pyramid import Size, level_layout
from mmsparse.ops.tokens import gather_tokens

PLUGIN_OPERATOR = 'mmsparse::multi_scale_deformable_attention'
SAMPLERS = ('grid_sample', 'gather', 'plugin')

_sampler: ContextVar[str] = ContextVar('sampler', default='grid_sample')


@contextmanager
def use_sampler(name: str) -> Iterator[None]:
    """Choose how all ops and layers inside the context sample feature maps.

    It holds for the current thread or asyncio task; compiled code keeps the choice that
    it was compiled with.

    Args:
        name: One of ``SAMPLERS``; ``plugin`` needs torch 2.4.

    Yields:
        Nothing.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SAMPLERS:
        raise ValueError(f'sampler must be one of {SAMPLERS}; got {name!r}.')
    token = _sampler.set(name)
    try:
        yield
    finally:
        _sampler.reset(token)


@torch.compiler.assume_constant_result  # the compiler cannot trace a ContextVar
def current_sampler() -> str:
    """Return the sampler of the context."""
    return _sampler.get()


def grid_sample(x: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    """Sample by the sampler of the context, as torch's function of that name.

    Args:
        x: Feature map, (B, C, H, W).
        points: Sampling locations, (x, y) from -1 to +1, (B, h, w, 2).
        align_corners: Whether -1 and +1 are the centers of the first and the last
            pixel; otherwise they are the borders.

    Returns:
        (B, C, h, w), interpolated between the pixels; zero beyond the feature map.
    """
    if current_sampler() == 'grid_sample':
        return F.grid_sample(x, points, mode='bilinear', align_corners=align_corners)
    return gather_sample(x, points, align_corners)


def gather_sample(x: Tensor, points: Tensor, align_corners: bool) -> Tensor:
    """Sample by four gathers; see :func:`grid_sample`.

    Args:
        x: Feature map, (B, C, H, W).
        points: Sampling locations, (x, y) from -1 to +1, (B, h, w, 2).
        align_corners: Whether -1 and +1 are the centers of the first and the last
            pixel.

    Returns:
        (B, C, h, w).
    """
    height, width = x.shape[-2:]
    columns, rows = (
        (share + 1) / 2 * (length - 1)
        if align_corners
        else ((share + 1) * length - 1) / 2
        for share, length in zip(points.unbind(-1), (width, height), strict=True)
    )
    cells = x.flatten(2).transpose(1, 2)  # (B, H * W, C)
    return _interpolate(cells, (rows, columns), (height, width)).permute(0, 3, 1, 2)


def gather_and_sum(
    value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor
) -> Tensor:
    """Compute multi-scale deformable attention by four gathers.

    The arguments are those of the node of NVIDIA's plugin for TensorRT.

    Args:
        value: Values of the cells of all levels, row-major, (B, N, heads, D).
        shapes: Height and width of every level, (levels, 2).
        starts: Index of the first cell of every level, (levels,).
        points: Sampling locations, (x, y) from 0 to 1 over each level,
            (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads, D).
    """
    num_heads = value.shape[2]
    heights, widths = shapes[:, None].unbind(-1)  # (levels, 1)
    columns, rows = points.unbind(-1)
    heads = torch.arange(num_heads, device=value.device)[:, None, None]
    sampled = _interpolate(
        value.flatten(1, 2),  # (B, N * heads, D)
        (rows * heights - 0.5, columns * widths - 0.5),
        (heights, widths),
        lambda cells: (cells + starts[:, None]) * num_heads + heads,
    )
    return (weights.unsqueeze(-1) * sampled).sum((3, 4))


def attention_on_cells(
    points: Tensor, weights: Tensor, sizes: Sequence[Size], displaced: bool = False
) -> Tensor:
    """Sum the attention that every cell receives from all queries, heads and points.

    It is the derivative of the sum of all outputs of multi-scale deformable attention
    with respect to the values. Attention beyond the feature maps is lost.

    Args:
        points: Sampling locations, (x, y) from 0 to 1 over each level,
            (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).
        sizes: Height and width of every level.
        displaced: Move the attention by half a cell to the right and down, as the
            release of Sparse DETR does.

    Returns:
        (B, N), in the dtype of ``weights``.

    Source: Sparse DETR, arXiv 2111.14330, figure 2.
    """
    shapes, starts = level_layout(sizes, points.device)
    heights, widths = shapes[:, None].unbind(-1)  # (levels, 1)
    columns, rows = points.unbind(-1)
    first_center = 0.0 if displaced else 0.5
    pixels = (rows * heights - first_center, columns * widths - first_center)
    num_cells = sum(height * width for height, width in sizes)
    image = torch.arange(len(points), device=points.device) * num_cells
    total = weights.new_zeros(len(points) * num_cells)
    for index, share in surrounding_cells(pixels, (heights, widths)):
        cells = index + starts[:, None] + image.view(-1, 1, 1, 1, 1)
        # Not scatter_add: with deterministic algorithms, sums have one order on GPUs.
        total.index_add_(0, cells.flatten(), (share * weights).flatten())
    return total.view(len(points), num_cells)


@cache
def opaque_gather_and_sum() -> Callable[..., Tensor]:
    """Return :func:`gather_and_sum` as an operator that exporters keep as one node."""
    operator = torch.library.custom_op(PLUGIN_OPERATOR, gather_and_sum, mutates_args=())
    operator.register_fake(
        lambda value, shapes, starts, points, weights: value.new_empty(
            (*points.shape[:3], value.shape[-1])
        )
    )
    return operator


def _interpolate(
    cells: Tensor,
    pixels: tuple[Tensor, Tensor],
    size: tuple[int, int] | tuple[Tensor, Tensor],
    to_index: Callable[[Tensor], Tensor] = lambda index: index,
) -> Tensor:
    """Interpolate between the four cells around every location; zero beyond the map.

    Args:
        cells: (B, N, C).
        pixels: Rows and columns of the locations, from the center of the first cell,
            (B, ...) each.
        size: Height and width of the feature map, integers or tensors that broadcast.
        to_index: Maps row-major indices into a feature map to indices into ``cells``.

    Returns:
        (B, ..., C).
    """
    corners = []
    for index, weight in surrounding_cells(pixels, size):
        index = to_index(index)
        sampled = gather_tokens(cells, index.flatten(1))
        sampled = sampled.unflatten(1, index.shape[1:])
        corners.append(weight.unsqueeze(-1) * sampled)
    return corners[0] + corners[1] + corners[2] + corners[3]


def surrounding_cells(
    pixels: tuple[Tensor, Tensor],
    size: tuple[int, int] | tuple[Tensor, Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the four cells around every location, for bilinear interpolation.

    Args:
        pixels: Rows and columns of the locations, from the center of the first cell.
        size: Height and width of the feature map, integers or tensors that broadcast.

    Yields:
        Row-major index and weight of a cell, of the shape of ``pixels``. The weight is
        0 for cells beyond the feature map, and their index that of the nearest one.
    """
    rows, columns = map(_neighbors, pixels, size)
    for row, row_weight in rows:
        for column, column_weight in columns:
            yield row * size[1] + column, row_weight * column_weight


def _neighbors(pixels: Tensor, length: int | Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return index and weight of the cells before and after locations on an axis.

    A cell beyond the axis has the index of the nearest one, and the weight 0.
    """
    before = pixels.floor()
    share = pixels - before
    neighbors = []
    for cell, weight in ((before, 1 - share), (before + 1, share)):
        inside = (cell >= 0) & (cell < length)
        index = cell.clamp(min=0).clamp(max=length - 1).long()
        neighbors.append((index, weight * inside))
    return neighbors
