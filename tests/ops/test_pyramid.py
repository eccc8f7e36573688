import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.pyramid import cell_centers, level_proposals, valid_sizes

SIZES = ((13, 17), (7, 9), (4, 5))


def masks(canvas, pictures, sizes):
    """True for padding; resized as mmdet does."""
    whole = torch.ones(len(pictures), *canvas)
    for mask, (height, width) in zip(whole, pictures, strict=True):
        mask[:height, :width] = 0
    return [F.interpolate(whole[None], size=size)[0].bool() for size in sizes]


@pytest.mark.parametrize('canvas', [(104, 136), (97, 131), (26, 34), (13, 17)], ids=str)
def test_valid_cells_are_those_that_a_resized_mask_leaves(canvas):
    height, width = canvas
    pictures = [canvas, (height - 5, width - 9), (1, 2), (height // 2, width)]

    sizes = valid_sizes(SIZES, canvas, pictures)

    for level, mask in enumerate(masks(canvas, pictures, SIZES)):
        rows, columns = (~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)
        assert torch.equal(sizes[:, level], torch.stack([rows, columns], -1))
        assert torch.equal(sizes[:, level].prod(-1), (~mask).sum((1, 2)))


def test_centers_run_from_0_to_1_over_the_picture_and_beyond_in_the_padding():
    centers = cell_centers([(2, 4), (1, 2)], torch.tensor([[[0.75, 0.5], [1.0, 1.0]]]))

    thirds = [1 / 6, 3 / 6, 5 / 6, 7 / 6]
    expected = [
        *([x, 0.5] for x in thirds),
        *([x, 1.5] for x in thirds),
        *([0.25, 0.5], [0.75, 0.5]),
    ]
    torch.testing.assert_close(centers, torch.tensor([expected]))


@pytest.mark.parametrize('cells', range(1, 200, 7))
def test_whole_cells_are_found_in_rounded_ratios(cells):
    """At 50 cells the first center lies on the limit of what is inside."""
    valid = torch.arange(1, cells + 1)
    ratios = (valid / cells)[:, None, None].expand(-1, 1, 2)

    centers = cell_centers([(1, cells)], ratios)

    assert torch.equal(centers[:, 0, 0], 0.5 / valid)


def test_proposals_are_logits_of_boxes_that_grow_with_the_level():
    centers = cell_centers([(4, 4), (2, 2)], torch.ones(1, 2, 2))

    boxes = level_proposals(centers, [(4, 4), (2, 2)]).sigmoid()

    torch.testing.assert_close(boxes[..., :2], centers)
    torch.testing.assert_close(boxes[0, :16, 2:], torch.full((16, 2), 0.05))
    torch.testing.assert_close(boxes[0, 16:, 2:], torch.full((4, 2), 0.1))


@pytest.mark.parametrize(('cells', 'inside'), [(49, 49), (50, 48), (51, 49)])
def test_there_is_no_proposal_too_near_to_the_border(cells, inside):
    proposals = level_proposals(
        cell_centers([(1, cells)], torch.ones(1, 1, 2)), [(1, cells)]
    )

    assert proposals.isfinite().all(-1).sum() == inside
    assert proposals[~proposals.isfinite()].eq(float('inf')).all()


def test_there_is_no_proposal_in_the_padding():
    ratios = torch.tensor([[[0.5, 1.0]]])
    padding = torch.tensor([[False, False, True, True]])

    proposals = level_proposals(cell_centers([(1, 4)], ratios), [(1, 4)], padding)

    assert torch.equal(proposals.isinf().any(-1), padding)
