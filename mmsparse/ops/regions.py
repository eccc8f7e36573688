"""Partition of feature maps into regions, and what is computed from the regions.

All functions take channels last. Regions, and the tokens of a region, are row-major.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import is_symbolic
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.attention import split_heads

Size = tuple[int, int]  # height and width, or rows and columns


def region_layout(size: Size, regions_per_side: int) -> tuple[Size, Size]:
    """Compute the size and the number of regions that cover a feature map.

    Where ``regions_per_side`` does not divide the feature map, regions have its size
    over ``regions_per_side``, rounded down, and there are more of them.

    Args:
        size: Height and width of the feature map, (H, W).
        regions_per_side: Number of regions down and across where it divides them.

    Returns:
        Height and width of a region, and the grid (rows, columns) of the regions; the
        last ones may reach beyond the feature map.

    Raises:
        ValueError: ``regions_per_side`` is less than 1.
    """
    if regions_per_side < 1:
        raise ValueError(
            f'regions_per_side must be at least 1; got {regions_per_side}.'
        )
    # Not max(), which symbolic shapes would keep as an unknown.
    height, width = (length // regions_per_side or 1 for length in size)
    return (height, width), (-(-size[0] // height), -(-size[1] // width))


def pad_to_multiple(x: Tensor, multiple: Size) -> Tensor:
    """Pad with zeros at the bottom and at the right.

    Args:
        x: Feature map, (B, H, W, C).
        multiple: Divisors of the padded height and width.

    Returns:
        (B, H', W', C) with H' >= H and W' >= W; ``x`` itself if it needs no padding,
        except in a graph of any size, which cannot depend on that.
    """
    axes = tuple(zip(x.shape[1:3], multiple, strict=True))
    remainders = [length % unit for length, unit in axes]
    if not is_symbolic(*remainders) and not any(remainders):
        return x
    # Written so that symbolic shapes know H' and W' to be multiples.
    bottom, right = (
        (length + unit - 1) // unit * unit - length for length, unit in axes
    )
    return F.pad(x, (0, 0, 0, right, 0, bottom))


def pad_to_size(x: Tensor, minimum: int) -> Tensor:
    """Pad with zeros at the bottom and at the right up to a minimum height and width.

    A graph of any size takes the case of its example.

    Args:
        x: Feature map, (B, H, W, C).
        minimum: Least height and width of the result.

    Returns:
        (B, H', W', C); ``x`` itself if it needs no padding.
    """
    height, width = x.shape[1:3]
    if height < minimum:
        x = F.pad(x, (0, 0, 0, 0, 0, minimum - height))
    if width < minimum:
        x = F.pad(x, (0, 0, 0, minimum - width))
    return x


def crop(x: Tensor, size: Size) -> Tensor:
    """Remove the padding at the bottom and at the right.

    In a graph of any size by a copy: whether a view is contiguous would depend on it.

    Args:
        x: Feature map, (B, H', W', C).
        size: Height and width of the result, (H, W).

    Returns:
        (B, H, W, C).
    """
    height, width = size
    if not is_symbolic(x.shape[1] - height, x.shape[2] - width):
        return x[:, :height, :width]
    rows, columns = (torch.arange(length, device=x.device) for length in size)
    return x.index_select(1, rows).index_select(2, columns)


def check_grid(x: Tensor, grid: Size) -> None:
    """Raise ValueError unless a grid divides a feature map.

    Args:
        x: Feature map, (B, H, W, C).
        grid: Number of regions, (rows, columns).

    Raises:
        ValueError: H or W is not a multiple of the grid.
    """
    (height, width), (rows, columns) = x.shape[1:3], grid
    if height % rows or width % columns:
        raise ValueError(
            f'grid={rows}x{columns} must divide the feature map of {height}x{width}; '
            'pad it first (pad_to_multiple).'
        )


def partition_regions(x: Tensor, grid: Size) -> Tensor:
    """Partition a feature map into a grid of equal regions.

    Args:
        x: Feature map, (B, H, W, C).
        grid: Number of regions, (rows, columns).

    Returns:
        (B, R, L, C): R = rows * columns regions of L tokens.

    Raises:
        ValueError: H or W is not a multiple of the grid.
    """
    regions = _by_region(x, grid)
    return regions.reshape(x.shape[0], grid[0] * grid[1], -1, x.shape[-1])


def merge_regions(regions: Tensor, grid: Size, size: Size) -> Tensor:
    """Merge regions into a feature map; the inverse of :func:`partition_regions`.

    Args:
        regions: (B, R, L, C).
        grid: Number of regions, (rows, columns).
        size: Height and width of the feature map, (H, W).

    Returns:
        (B, H, W, C).
    """
    region = (size[0] // grid[0], size[1] // grid[1])
    x = regions.unflatten(2, region).unflatten(1, grid)
    x = x.transpose(2, 3)  # (B, rows, h, columns, w, C)
    return x.reshape(x.shape[0], *size, -1)


def partition_by_head(x: Tensor, grid: Size, num_heads: int) -> Tensor:
    """Partition a feature map into regions and its channels into heads, in one copy.

    Args:
        x: Feature map, (B, H, W, C).
        grid: Number of regions, (rows, columns).
        num_heads: Number of heads; divides C.

    Returns:
        (B, R, heads, L, C / heads).

    Raises:
        ValueError: H or W is not a multiple of the grid, or ``num_heads`` does not
            divide C.
    """
    x = split_heads(_by_region(x, grid), num_heads)
    x = x.transpose(3, 4)  # (B, rows, columns, heads, h, w, D)
    return x.flatten(4, 5).flatten(1, 2)


def merge_by_head(regions: Tensor, grid: Size, size: Size) -> Tensor:
    """Merge regions and heads in one copy; the inverse of :func:`partition_by_head`.

    Args:
        regions: (B, R, heads, L, C / heads).
        grid: Number of regions, (rows, columns).
        size: Height and width of the feature map, (H, W).

    Returns:
        (B, H, W, C).
    """
    region = (size[0] // grid[0], size[1] // grid[1])
    x = regions.unflatten(3, region).unflatten(1, grid)
    x = x.permute(0, 1, 4, 2, 5, 3, 6)  # (B, rows, h, columns, w, heads, D)
    return x.reshape(x.shape[0], *size, -1)


def _by_region(x: Tensor, grid: Size) -> Tensor:
    """View (B, H, W, C) as (B, rows, columns, h, w, C)."""
    check_grid(x, grid)
    rows, columns = grid
    x = x.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return x.transpose(2, 3)


def region_means(x: Tensor, region: Size) -> Tensor:
    """Average a feature map over every region.

    Args:
        x: Feature map, (B, H, W, C).
        region: Height and width of a region, (h, w). The last regions may reach beyond
            the feature map; their mean is that of their tokens on it.

    Returns:
        (B, R, C), float32 at least.
    """
    (h, w), (height, width) = region, x.shape[1:3]
    x = pad_to_multiple(x, region)
    # One axis at a time: a mean over two axes that are not adjacent is slow on CPUs.
    means = x.unflatten(1, (-1, h)).mean(2, dtype=precise_dtype(x))
    means = means.unflatten(2, (-1, w)).mean(3).flatten(1, 2)  # (B, R, C)
    if height % h == 0 and width % w == 0:
        return means
    # The padding counts in these means.
    return means * _upscale((height, width), region, means.dtype, means.device)


@cached_by_size
def _upscale(
    size: Size, region: Size, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return tokens of a region over those on the feature map, (R, 1)."""
    (height, width), (h, w) = size, region
    upscale = [
        (h / min(h, height - top)) * (w / min(w, width - left))
        for top in range(0, height, h)
        for left in range(0, width, w)
    ]
    return torch.tensor(upscale, dtype=dtype, device=device).unsqueeze(-1)


def pool_regions(x: Tensor, grid: Size, pool: Callable[[Tensor], Tensor]) -> Tensor:
    """Pool the tokens within every region.

    Args:
        x: Feature map, (B, H, W, C), a multiple of the grid.
        grid: Number of regions, (rows, columns).
        pool: Maps (N, C, h, w) to (N, C, h', w').

    Returns:
        Feature map of the pooled regions, (B, rows * h', columns * w', C).
    """
    regions = _by_region(x, grid).permute(0, 1, 2, 5, 3, 4).flatten(0, 2)
    pooled = pool(regions)  # (B * R, C, h', w')
    size = (grid[0] * pooled.shape[2], grid[1] * pooled.shape[3])
    tokens = pooled.flatten(2).transpose(1, 2).unflatten(0, (x.shape[0], -1))
    return merge_regions(tokens, grid, size)
