"""The cells of a pyramid of maps, and where they lie in pictures that are padded.

The levels of a pyramid are flattened row by row and concatenated, fine to coarse: N
cells in all. Pictures of different sizes share a canvas; the cells beyond a picture are
padding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height and width

# A box that is proposed at a cell has this side, as a part of the picture, on level 0.
FINEST_SIDE = 0.05
INSIDE = (0.01, 0.99)


def valid_sizes(
    level_sizes: Sequence[Size], canvas: Size, pictures: Sequence[Size]
) -> Tensor:
    """Count the rows and columns of every level that are not padding.

    Done on the CPU, so that numbers of tokens are known without waiting for a GPU.

    Args:
        level_sizes: Height and width of every level.
        canvas: Height and width of what the pictures are padded to.
        pictures: Height and width of every picture; they lie in the upper left corner.

    Returns:
        Rows and columns, (B, levels, 2): those whose nearest pixel is of the picture.
    """
    axes = []
    for axis in (0, 1):
        ends = torch.tensor([picture[axis] for picture in pictures])
        inside = (torch.arange(canvas[axis]) < ends[:, None]).float().unsqueeze(1)
        resized = [F.interpolate(inside, size=size[axis]) for size in level_sizes]
        axes.append(torch.stack([x.sum((1, 2)) for x in resized], dim=1))
    return torch.stack(axes, dim=-1).long()


def cell_centers(level_sizes: Sequence[Size], valid_ratios: Tensor) -> Tensor:
    """Locate the centers of all cells within their pictures.

    Args:
        level_sizes: Height and width of every level.
        valid_ratios: Part of the width and of the height of every level that is not
            padding, (B, levels, 2).

    Returns:
        (x, y), from 0 to 1 over the picture and beyond in the padding, (B, N, 2).
    """
    centers = []
    ratios = valid_ratios.unbind(1)
    for (height, width), ratio in zip(level_sizes, ratios, strict=True):
        x = _along(width, ratio[:, 0])[:, None, :].expand(-1, height, -1)
        y = _along(height, ratio[:, 1])[:, :, None].expand(-1, -1, width)
        centers.append(torch.stack([x, y], dim=-1).flatten(1, 2))
    return torch.cat(centers, dim=1)


def _along(cells: int, ratio: Tensor) -> Tensor:
    valid = (ratio * cells).round()  # whole cells again
    return (torch.arange(cells, device=ratio.device) + 0.5) / valid[:, None]


def level_proposals(
    centers: Tensor, level_sizes: Sequence[Size], padding: Tensor | None = None
) -> Tensor:
    """Propose a square box at every cell, larger on coarser levels.

    Args:
        centers: (x, y) of all cells within their pictures, (B, N, 2).
        level_sizes: Height and width of every level.
        padding: True for the cells that are padding, (B, N); None for no such cells.

    Returns:
        Logits of (cx, cy, w, h), (B, N, 4). Of the cells that are padding or too near
        to the border of the picture they are infinite.

    Source: Deformable DETR, arXiv 2010.04159, appendix A.4.
    """
    sides = torch.cat(
        [
            centers.new_full((height * width,), FINEST_SIDE * 2**level)
            for level, (height, width) in enumerate(level_sizes)
        ]
    )
    boxes = torch.cat([centers, sides[:, None].expand_as(centers)], dim=-1)
    invalid = ((boxes <= INSIDE[0]) | (boxes >= INSIDE[1])).any(-1)
    if padding is not None:
        invalid = invalid | padding
    logits = torch.log(boxes / (1 - boxes))
    return logits.masked_fill(invalid[..., None], float('inf'))
