from functools import partial

import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.attention import split_heads
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


@pytest.mark.parametrize(
    ('size', 'region', 'grid'),
    [
        ((14, 21), (2, 3), (7, 7)),
        ((15, 20), (2, 2), (8, 10)),  # rounded down, so there are more
        ((5, 7), (1, 1), (5, 7)),  # fewer rows than regions
    ],
    ids=str,
)
def test_regions_cover_the_feature_map(size, region, grid):
    assert region_layout(size, 7) == (region, grid)


def test_no_regions_per_side_raises():
    with pytest.raises(ValueError, match='regions_per_side must be at least 1; got 0'):
        region_layout((4, 4), 0)


def test_regions_and_their_tokens_are_row_major():
    x = torch.arange(4 * 6).reshape(1, 4, 6, 1)

    regions = partition_regions(x, grid=(2, 3))

    assert regions.shape == (1, 6, 4, 1)
    assert regions[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert regions[0, 3, :, 0].tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (4, 6), (4, 1)])
def test_merging_inverts_partitioning(grid):
    x = torch.rand(2, 4, 6, 8)

    by_region, by_head = partition_regions(x, grid), partition_by_head(x, grid, 4)

    assert torch.equal(by_head, split_heads(by_region, 4))
    assert torch.equal(merge_regions(by_region, grid, (4, 6)), x)
    assert torch.equal(merge_by_head(by_head, grid, (4, 6)), x)


def test_padding_adds_zeros_at_the_bottom_and_right():
    x = torch.ones(1, 5, 7, 2)

    padded = pad_to_multiple(x, (4, 3))

    assert padded.shape == (1, 8, 9, 2)
    assert torch.equal(padded[:, :5, :7], x)
    assert padded.sum() == x.sum()


def test_a_feature_map_that_is_a_multiple_is_not_padded():
    x = torch.ones(1, 8, 4, 2)

    assert pad_to_multiple(x, (4, 2)) is x


@pytest.mark.parametrize(
    'partition', [partition_regions, partial(partition_by_head, num_heads=1)]
)
def test_a_grid_that_does_not_divide_the_feature_map_raises(partition):
    with pytest.raises(ValueError, match='grid=2x2 must divide the feature map of 5x7'):
        partition(torch.ones(1, 5, 7, 2), grid=(2, 2))


def test_heads_that_do_not_divide_the_channels_raise():
    with pytest.raises(ValueError, match='must divide the channels, 4; got 3'):
        partition_by_head(torch.ones(1, 2, 2, 4), (1, 1), 3)


@pytest.mark.parametrize('size', [(4, 6), (5, 6), (5, 7), (1, 2)], ids=str)
def test_means_are_those_of_the_tokens_on_the_feature_map(size):
    x = torch.rand(2, *size, 4, requires_grad=True)

    means = region_means(x, region=(2, 3))

    expected = [
        x[:, top : top + 2, left : left + 3].mean((1, 2))
        for top in range(0, size[0], 2)
        for left in range(0, size[1], 3)
    ]
    expected = torch.stack(expected, 1)
    cotangent = torch.randn_like(expected)
    torch.testing.assert_close(means, expected)
    torch.testing.assert_close(
        torch.autograd.grad(means, x, cotangent),
        torch.autograd.grad(expected, x, cotangent),
    )


def test_means_of_float16_are_float32():
    x = torch.full((1, 24, 40, 1), 200.0, dtype=torch.float16)

    means = region_means(x, region=(25, 40))

    assert means.dtype == torch.float32
    assert means.item() == 200


@pytest.mark.parametrize(
    ('pool', 'size'),
    [
        (partial(F.avg_pool2d, kernel_size=2), (1, 2)),
        (partial(F.adaptive_max_pool2d, output_size=2), (2, 2)),
    ],
    ids=['avg', 'adaptive_max'],
)
def test_regions_are_pooled_separately(pool, size):
    x = torch.rand(2, 6, 8, 3)  # regions of 3x4

    pooled = pool_regions(x, (2, 2), pool)

    assert pooled.shape == (2, 2 * size[0], 2 * size[1], 3)
    corner = pool(x[:, 3:, :4].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(pooled[:, size[0] :, : size[1]], corner)
