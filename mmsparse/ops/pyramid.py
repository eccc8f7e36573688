"""Coordinates on feature maps and pyramids: cell centers, proposals, sampled points.

The levels of a pyramid are flattened row by row and concatenated, fine to coarse: N
cells in all. Images of different sizes are padded to one canvas; the cells beyond an
image are padding.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._precision import precise_dtype

Size = tuple[int, int]  # height and width

FINEST_SIDE = 0.05  # of the box proposed at a cell of level 0, as a share of the image
# Coordinates of a proposal, as a share of the image: outside of them it is invalid.
PROPOSAL_RANGE = (0.01, 0.99)


def cell_centers(count: int, like: Tensor) -> Tensor:
    """Return the centers of the cells along an axis, 0.5, 1.5, ..., in cells.

    Args:
        count: Number of cells.
        like: Tensor of the same device, and of the same dtype or a less precise one.

    Returns:
        (count,), float32 at least.
    """
    return _cell_centers(count, precise_dtype(like), like.device)


@cached_by_size
def _cell_centers(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(count, dtype=dtype, device=device) + 0.5


def axes_to_points(rows: Tensor, columns: Tensor) -> Tensor:
    """Combine the coordinates of rows, (H,), and columns, (W,), to (H, W, 2)."""
    return torch.stack(torch.meshgrid(rows, columns, indexing='ij'), dim=-1)


def valid_sizes(
    level_sizes: Sequence[Size], canvas: Size, images: Sequence[Size]
) -> Tensor:
    """Count the rows and columns of every level that are not padding.

    Computed on the CPU, so that numbers of tokens are known without waiting for a GPU.

    Args:
        level_sizes: Height and width of every level.
        canvas: Height and width that the images are padded to.
        images: Height and width of every image, which is in the upper left corner.

    Returns:
        Rows and columns whose nearest pixel belongs to the image, (B, levels, 2).
    """
    axes = []
    for axis in (0, 1):
        ends = torch.tensor([image[axis] for image in images])
        inside = (torch.arange(canvas[axis]) < ends[:, None]).float().unsqueeze(1)
        resized = [F.interpolate(inside, size=size[axis]) for size in level_sizes]
        axes.append(torch.stack([x.sum((1, 2)) for x in resized], dim=1))
    return torch.stack(axes, dim=-1).long()


def level_centers(level_sizes: Sequence[Size], valid_ratios: Tensor) -> Tensor:
    """Compute the centers of the cells of all levels, relative to their images.

    Args:
        level_sizes: Height and width of every level.
        valid_ratios: Share of the width and of the height of every level that is not
            padding, (B, levels, 2).

    Returns:
        (x, y), from 0 to 1 over the image and beyond 1 in the padding, (B, N, 2).
    """
    centers = []
    ratios = valid_ratios.unbind(1)
    for (height, width), ratio in zip(level_sizes, ratios, strict=True):
        x = _relative_centers(width, ratio[:, 0])[:, None, :].expand(-1, height, -1)
        y = _relative_centers(height, ratio[:, 1])[:, :, None].expand(-1, -1, width)
        centers.append(torch.stack([x, y], dim=-1).flatten(1, 2))
    return torch.cat(centers, dim=1)


def _relative_centers(cells: int, ratio: Tensor) -> Tensor:
    valid = (ratio * cells).round()  # whole cells again
    return cell_centers(cells, ratio) / valid[:, None]


def level_proposals(
    centers: Tensor, level_sizes: Sequence[Size], padding: Tensor | None = None
) -> Tensor:
    """Propose a square box at every cell, twice as large on every coarser level.

    Args:
        centers: Centers of the cells as (x, y) relative to their images, (B, N, 2).
        level_sizes: Height and width of every level.
        padding: True for cells that are padding, (B, N); None for none.

    Returns:
        Logits of (cx, cy, w, h), (B, N, 4); infinite for cells that are padding or too
        close to the border of the image.

    Source: Deformable DETR, arXiv 2010.04159, appendix A.4.
    """
    sides = torch.cat(
        [
            centers.new_full((height * width,), FINEST_SIDE * 2**level)
            for level, (height, width) in enumerate(level_sizes)
        ]
    )
    boxes = torch.cat([centers, sides[:, None].expand_as(centers)], dim=-1)
    low, high = PROPOSAL_RANGE
    invalid = ((boxes <= low) | (boxes >= high)).any(-1)
    if padding is not None:
        invalid = invalid | padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(invalid[..., None], float('inf'))


def level_layout(
    sizes: Sequence[Size] | Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return where the levels are, as tensors; copies to a GPU are cached.

    Args:
        sizes: Height and width of every level, or this as a tensor on the device.
        device: Device of the results.

    Returns:
        Height and width of every level, (levels, 2), and the index of its first cell,
        (levels,); int32 unless ``sizes`` is of another dtype.
    """
    if not isinstance(sizes, Tensor):
        return _level_layout(tuple(tuple(size) for size in sizes), device)
    areas = sizes.prod(1, dtype=sizes.dtype)
    return sizes, areas.cumsum(0, dtype=sizes.dtype) - areas


@cached_by_size
def _level_layout(
    sizes: tuple[Size, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    areas = [height * width for height, width in sizes]
    starts = [0, *accumulate(areas[:-1])]
    dtype = torch.int32  # as TensorRT's plugin takes them
    return (
        torch.tensor(sizes, dtype=dtype, device=device),
        torch.tensor(starts, dtype=dtype, device=device),
    )


def sampling_points(references: Tensor, offsets: Tensor, level_sizes: Tensor) -> Tensor:
    """Add sampling offsets to reference points or boxes.

    Args:
        references: Points (x, y) or boxes (cx, cy, w, h), from 0 to 1 over every level
            with its padding, (B, Q, levels, 2 or 4).
        offsets: Offsets (x, y), in cells of the level from a reference point; from the
            center of a box, in halves of its width and height over the number of
            points. (B, Q, heads, levels, points, 2).
        level_sizes: Height and width of every level, (levels, 2).

    Returns:
        (x, y) from 0 to 1 over every level, (B, Q, heads, levels, points, 2).

    Source: Deformable DETR, arXiv 2010.04159, appendix A.4 and A.5.
    """
    references = references[:, :, None, :, None]
    if references.shape[-1] == 2:
        return references + offsets / level_sizes.flip(-1)[:, None]
    centers, sides = references.chunk(2, dim=-1)
    return centers + offsets * sides * (0.5 / offsets.shape[-2])
