"""Cutting a map into rectangular regions and putting it together again."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad with zeros at the bottom and at the right.

    Args:
        x: Map, (B, H, W, C).
        multiple: What height and width become multiples of.

    Returns:
        (B, H', W', C) with H' >= H and W' >= W; ``x`` itself if nothing is missing.
    """
    height, width = x.shape[1:3]
    bottom, right = -height % multiple, -width % multiple
    if bottom == 0 and right == 0:
        return x
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def partition_regions(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cut a map into a grid of equal regions.

    Args:
        x: Map, (B, H, W, C).
        grid: Number of regions down and across, (rows, columns).

    Returns:
        (B, R, L, C): R = rows * columns regions and L tokens in each, both row-major.

    Raises:
        ValueError: H or W is not a multiple of the grid.
    """
    batch, height, width, channels = x.shape
    rows, columns = grid
    if height % rows or width % columns:
        raise ValueError(
            f'The map of {height}x{width} does not divide into a grid of '
            f'{rows}x{columns} regions; pad it first (pad_to_multiple).'
        )
    x = x.reshape(batch, rows, height // rows, columns, width // columns, channels)
    x = x.transpose(2, 3)  # (B, rows, columns, h, w, C)
    return x.reshape(batch, rows * columns, -1, channels)


def merge_regions(
    regions: Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Put regions back into a map; the inverse of :func:`partition_regions`.

    Args:
        regions: (B, R, L, C).
        grid: Number of regions down and across, (rows, columns).
        size: Height and width of the map, (H, W).

    Returns:
        The map, (B, H, W, C).
    """
    batch, _, _, channels = regions.shape
    (rows, columns), (height, width) = grid, size
    x = regions.reshape(
        batch, rows, columns, height // rows, width // columns, channels
    )
    return x.transpose(2, 3).reshape(batch, height, width, channels)
