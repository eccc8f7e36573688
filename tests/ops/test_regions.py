from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.regions import (
    add_regions,
    blank_outside,
    merge_regions,
    pad_to_multiple,
    partition_regions,
    pool_regions,
    region_means,
)


def test_regions_and_their_tokens_are_row_major():
    x = torch.arange(4 * 6).reshape(1, 4, 6, 1)

    regions = partition_regions(x, grid=(2, 3))

    assert regions.shape == (1, 6, 4, 1)
    assert regions[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert regions[0, 3, :, 0].tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (4, 6)])
def test_regions_are_added_to_the_map_in_their_places(grid):
    x, other = torch.rand(2, 2, 4, 6, 3)

    added = add_regions(x, partition_regions(other, grid), grid)

    assert torch.equal(added, x + other)


@pytest.mark.parametrize('size', [(4, 6), (3, 6), (3, 5), (1, 1)], ids=str)
def test_what_lies_outside_the_map_becomes_zero(size):
    region = (2, 3)
    inside = pad_to_multiple(torch.ones(1, *size, 1), region)
    grid = (inside.shape[1] // 2, inside.shape[2] // 3)
    regions = partition_regions(torch.rand(2, *inside.shape[1:3], 4) + 1, grid)

    blanked = blank_outside(regions, region, size)

    assert torch.equal(blanked, regions * partition_regions(inside, grid))


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (4, 6)])
def test_merge_undoes_partition(grid):
    x = torch.rand(2, 4, 6, 3)

    merged = merge_regions(partition_regions(x, grid), grid, size=(4, 6))

    assert torch.equal(merged, x)


def test_padding_adds_zeros_at_the_bottom_and_right():
    x = torch.ones(1, 5, 7, 2)

    padded = pad_to_multiple(x, (4, 3))

    assert padded.shape == (1, 8, 9, 2)
    assert torch.equal(padded[:, :5, :7], x)
    assert padded.sum() == x.sum()


def test_padding_leaves_a_fitting_map_alone():
    x = torch.ones(1, 8, 4, 2)

    assert pad_to_multiple(x, (4, 2)) is x


def test_a_grid_that_does_not_divide_the_map_is_refused():
    with pytest.raises(ValueError, match='5x7 does not divide into a grid of 2x2'):
        partition_regions(torch.ones(1, 5, 7, 2), grid=(2, 2))


@pytest.mark.parametrize('size', [(4, 6), (5, 6), (5, 7), (1, 2)], ids=str)
def test_means_are_those_of_the_positions_inside_the_map(size):
    region = (2, 3)
    x = torch.rand(2, *size, 4)
    padded = pad_to_multiple(x, region)
    grid = (padded.shape[1] // 2, padded.shape[2] // 3)

    means = region_means(partition_regions(padded, grid), region, size)

    expected = [
        x[:, top : top + 2, left : left + 3].mean((1, 2))
        for top in range(0, size[0], 2)
        for left in range(0, size[1], 3)
    ]
    torch.testing.assert_close(means, torch.stack(expected, 1))


def test_means_of_padded_regions_stay_in_the_range_of_float16():
    x = torch.full((1, 1, 1000, 1), 200.0, dtype=torch.float16)

    means = region_means(x, region=(25, 40), size=(24, 40))

    assert means.isfinite().all()


@pytest.mark.parametrize(
    ('pool', 'count'),
    [
        (partial(F.avg_pool2d, kernel_size=2), 2),
        (partial(F.adaptive_max_pool2d, output_size=2), 4),
    ],
    ids=['avg', 'adaptive_max'],
)
def test_pooling_stays_within_the_regions(pool, count):
    x = torch.rand(2, 6, 8, 3)
    regions = partition_regions(x, grid=(2, 2))  # of 3x4

    pooled = pool_regions(regions, (3, 4), pool)

    assert pooled.shape == (2, 4, count, 3)
    corner = pool(x[:, 3:, :4].permute(0, 3, 1, 2))  # region 2
    torch.testing.assert_close(pooled[:, 2], corner.flatten(2).transpose(1, 2))
