from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.regions import (
    merge_by_head,
    merge_regions,
    pad_to_multiple,
    partition_by_head,
    partition_regions,
    pool_regions,
    region_layout,
    region_means,
)

GRIDS = [(1, 1), (2, 3), (4, 6)]


@pytest.mark.parametrize(
    ('size', 'regions_per_side', 'region', 'grid'),
    [
        ((14, 21), 7, (2, 3), (7, 7)),
        ((15, 20), 7, (2, 2), (8, 10)),
        ((13, 7), 7, (1, 1), (13, 7)),
        ((3, 30), 7, (1, 4), (3, 8)),
        ((5, 5), 1, (5, 5), (1, 1)),
    ],
    ids=str,
)
def test_regions_cover_the_feature_map(size, regions_per_side, region, grid):
    assert region_layout(size, regions_per_side) == (region, grid)


def test_no_regions_are_rejected():
    with pytest.raises(ValueError, match='regions_per_side must be at least 1; got 0'):
        region_layout((4, 4), 0)


def test_regions_and_their_tokens_are_row_major():
    x = torch.arange(4 * 6).reshape(1, 4, 6, 1)

    regions = partition_regions(x, grid=(2, 3))

    assert regions.shape == (1, 6, 4, 1)
    assert regions[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert regions[0, 3, :, 0].tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize('grid', GRIDS)
def test_merge_undoes_partition(grid):
    x = torch.rand(2, 4, 6, 3)

    merged = merge_regions(partition_regions(x, grid), grid, size=(4, 6))

    assert torch.equal(merged, x)


@pytest.mark.parametrize('num_heads', [1, 3])
@pytest.mark.parametrize('grid', GRIDS)
def test_partition_by_head_splits_the_channels_of_regions(grid, num_heads):
    x = torch.rand(2, 4, 6, 6)

    heads = partition_by_head(x, grid, num_heads)

    expected = partition_regions(x, grid).unflatten(-1, (num_heads, -1))
    assert torch.equal(heads, expected.transpose(2, 3))
    assert torch.equal(merge_by_head(heads, grid, size=(4, 6)), x)


def test_padding_adds_zeros_at_the_bottom_and_right():
    x = torch.ones(1, 5, 7, 2)

    padded = pad_to_multiple(x, (4, 3))

    assert padded.shape == (1, 8, 9, 2)
    assert torch.equal(padded[:, :5, :7], x)
    assert padded.sum() == x.sum()


def test_a_feature_map_that_fits_is_not_padded():
    x = torch.ones(1, 8, 4, 2)

    assert pad_to_multiple(x, (4, 2)) is x


@pytest.mark.parametrize(
    'partition', [partition_regions, partial(partition_by_head, num_heads=2)]
)
def test_a_grid_that_does_not_divide_the_feature_map_is_rejected(partition):
    with pytest.raises(
        ValueError, match=r'grid=2x2 must divide .* of 5x7; pad it first \(pad_to_'
    ):
        partition(torch.ones(1, 5, 7, 2), grid=(2, 2))


def test_heads_that_do_not_divide_the_channels_are_rejected():
    with pytest.raises(
        ValueError, match='num_heads must divide the channels, 8; got 3'
    ):
        partition_by_head(torch.ones(1, 4, 4, 8), (2, 2), num_heads=3)


@pytest.mark.parametrize('size', [(4, 6), (5, 6), (5, 7), (1, 2), (3, 5)], ids=str)
def test_means_are_those_of_the_tokens_on_the_feature_map(size):
    x = torch.rand(2, *size, 4)

    means = region_means(x, region=(2, 3))

    expected = [
        x[:, top : top + 2, left : left + 3].mean((1, 2))
        for top in range(0, size[0], 2)
        for left in range(0, size[1], 3)
    ]
    torch.testing.assert_close(means, torch.stack(expected, 1))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_means_of_half_precision_are_float32(dtype):
    x = torch.full((1, 24, 40, 1), 200.0, dtype=dtype)  # sums of 200,000: inf in half

    means = region_means(x, region=(25, 40))

    assert means.dtype == torch.float32
    assert means.tolist() == [[[200.0]]]


@pytest.mark.parametrize(
    ('pool', 'size'),
    [
        (partial(F.avg_pool2d, kernel_size=2), (1, 2)),
        (partial(F.adaptive_max_pool2d, output_size=2), (2, 2)),
    ],
    ids=['avg', 'adaptive_max'],
)
def test_pooling_stays_within_the_regions(pool, size):
    x = torch.rand(2, 6, 8, 3)  # regions of 3x4

    pooled = pool_regions(x, (2, 2), pool)

    rows, columns = size
    assert pooled.shape == (2, 2 * rows, 2 * columns, 3)
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        region = x[:, 3 * i : 3 * i + 3, 4 * j : 4 * j + 4].permute(0, 3, 1, 2)
        torch.testing.assert_close(
            pooled[:, rows * i : rows * i + rows, columns * j : columns * j + columns],
            pool(region).permute(0, 2, 3, 1),
        )
