import pytest
import torch

from mmsparse.ops import merge_regions, pad_to_multiple, partition_regions


def test_regions_and_their_tokens_are_row_major():
    x = torch.arange(4 * 6).reshape(1, 4, 6, 1)

    regions = partition_regions(x, grid=(2, 3))

    assert regions.shape == (1, 6, 4, 1)
    assert regions[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    assert regions[0, 3, :, 0].tolist() == [12, 13, 18, 19]


@pytest.mark.parametrize('grid', [(1, 1), (2, 3), (4, 6)])
def test_merge_undoes_partition(grid):
    x = torch.rand(2, 4, 6, 3)

    merged = merge_regions(partition_regions(x, grid), grid, size=(4, 6))

    assert torch.equal(merged, x)


def test_padding_adds_zeros_at_the_bottom_and_right():
    x = torch.ones(1, 5, 7, 2)

    padded = pad_to_multiple(x, 4)

    assert padded.shape == (1, 8, 8, 2)
    assert torch.equal(padded[:, :5, :7], x)
    assert padded.sum() == x.sum()


def test_padding_leaves_a_fitting_map_alone():
    x = torch.ones(1, 8, 4, 2)

    assert pad_to_multiple(x, 4) is x


def test_a_grid_that_does_not_divide_the_map_is_refused():
    with pytest.raises(ValueError, match='5x7 does not divide into a grid of 2x2'):
        partition_regions(torch.ones(1, 5, 7, 2), grid=(2, 2))
