"""Cutting a map into rectangular regions and putting it together again."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._precision import precise_type


def pad_to_multiple(x: Tensor, multiple: tuple[int, int]) -> Tensor:
    """Pad with zeros at the bottom and at the right.

    Args:
        x: Map, (B, H, W, C).
        multiple: What height and width become multiples of.

    Returns:
        (B, H', W', C) with H' >= H and W' >= W; ``x`` itself if nothing is missing.
    """
    bottom, right = (
        -length % unit for length, unit in zip(x.shape[1:3], multiple, strict=True)
    )
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
    return _by_region(x, grid).reshape(batch, rows * columns, -1, channels)


def _by_region(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """View (B, H, W, C) as (B, rows, columns, h, w, C)."""
    rows, columns = grid
    x = x.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return x.transpose(2, 3)


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
    merged = _spread(regions, grid, (size[0] // grid[0], size[1] // grid[1]))
    return merged.transpose(2, 3).reshape(batch, *size, channels)


def add_regions(x: Tensor, regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Add regions to the map in their places, without putting them together before.

    Args:
        x: Map, (B, H, W, C).
        regions: (B, R, L, C).
        grid: Number of regions down and across, (rows, columns).

    Returns:
        (B, H, W, C).
    """
    cells = _by_region(x, grid)
    height, width = cells.shape[3:5]
    added = cells + _spread(regions, grid, (height, width))
    return added.transpose(2, 3).reshape(x.shape)


def _spread(regions: Tensor, grid: tuple[int, int], region: tuple[int, int]) -> Tensor:
    """View (B, R, L, C) as (B, rows, columns, h, w, C)."""
    return regions.unflatten(2, region).unflatten(1, grid)


def blank_outside(
    regions: Tensor, region: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Set the positions of regions to zero that lie outside the map.

    Args:
        regions: (B, R, L, C).
        region: Height and width of a region, (h, w); L = h * w.
        size: Height and width of the map before padding, (H, W).

    Returns:
        (B, R, L, C); ``regions`` itself if none lies outside.
    """
    (h, w), (height, width) = region, size
    if height % h == 0 and width % w == 0:
        return regions
    inside = pad_to_multiple(regions.new_ones(1, height, width, 1), region)
    grid = (inside.shape[1] // h, inside.shape[2] // w)
    return regions.masked_fill(partition_regions(inside, grid) == 0, 0)


def region_means(
    regions: Tensor, region: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Average every region over those of its positions that lie inside the map.

    Args:
        regions: (B, R, L, C), zero at the positions outside.
        region: Height and width of a region, (h, w); L = h * w.
        size: Height and width of the map before padding, (H, W).

    Returns:
        (B, R, C), float32 at least.
    """
    (h, w), (height, width) = region, size
    means = regions.mean(dim=2, dtype=precise_type(regions))
    if height % h == 0 and width % w == 0:
        return means
    upscale = [
        (h / min(h, height - top)) * (w / min(w, width - left))
        for top in range(0, height, h)
        for left in range(0, width, w)
    ]
    return means * means.new_tensor(upscale).unsqueeze(-1)


def pool_regions(
    regions: Tensor, region: tuple[int, int], pool: Callable[[Tensor], Tensor]
) -> Tensor:
    """Pool the tokens of every region.

    Args:
        regions: (B, R, L, C).
        region: Height and width of a region, (h, w); L = h * w.
        pool: Maps (N, C, h, w) to (N, C, h', w').

    Returns:
        (B, R, h' * w', C).
    """
    maps = regions.flatten(0, 1).unflatten(1, region).permute(0, 3, 1, 2)
    pooled = pool(maps).flatten(2).transpose(1, 2)  # (B * R, h' * w', C)
    return pooled.unflatten(0, regions.shape[:2])
