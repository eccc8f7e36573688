import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.pyramid import (
    axes_to_points,
    cell_centers,
    level_centers,
    level_proposals,
    sampling_points,
    valid_sizes,
)

SIZES = ((13, 17), (7, 9), (4, 5))


def resized_masks(canvas, images, sizes):
    """True for padding; resized as mmdet does."""
    canvases = torch.ones(len(images), *canvas)
    for mask, (height, width) in zip(canvases, images, strict=True):
        mask[:height, :width] = 0
    return [F.interpolate(canvases[None], size=size)[0].bool() for size in sizes]


@pytest.mark.parametrize('canvas', [(104, 136), (97, 131), (26, 34), (13, 17)], ids=str)
def test_valid_cells_are_those_that_a_resized_mask_leaves(canvas):
    height, width = canvas
    images = [canvas, (height - 5, width - 9), (1, 2), (height // 2, width)]

    sizes = valid_sizes(SIZES, canvas, images)

    for level, mask in enumerate(resized_masks(canvas, images, SIZES)):
        rows, columns = (~mask[:, :, 0]).sum(1), (~mask[:, 0]).sum(1)
        assert torch.equal(sizes[:, level], torch.stack([rows, columns], -1))
        assert torch.equal(sizes[:, level].prod(-1), (~mask).sum((1, 2)))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_cell_centers_are_in_cells_and_float32_at_least(dtype):
    centers = cell_centers(300, torch.zeros(1, dtype=dtype))

    assert centers.dtype == torch.promote_types(dtype, torch.float32)
    assert centers.tolist() == [i + 0.5 for i in range(300)]


def test_axes_combine_to_row_major_points():
    points = axes_to_points(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 3.0, 4.0]))

    assert points.flatten(0, 1).tolist() == [[y, x] for y in (0, 1) for x in (2, 3, 4)]


def test_centers_run_from_0_to_1_over_the_image_and_beyond_in_the_padding():
    centers = level_centers([(2, 4), (1, 2)], torch.tensor([[[0.75, 0.5], [1.0, 1.0]]]))

    thirds = [1 / 6, 3 / 6, 5 / 6, 7 / 6]
    expected = [
        *([x, 0.5] for x in thirds),
        *([x, 1.5] for x in thirds),
        *([0.25, 0.5], [0.75, 0.5]),
    ]
    torch.testing.assert_close(centers, torch.tensor([expected]))


@pytest.mark.parametrize('cells', range(1, 200, 7))
def test_numbers_of_cells_are_found_in_rounded_ratios(cells):
    """At 50 cells the first center is on the limit of the proposals."""
    valid = torch.arange(1, cells + 1)
    ratios = (valid / cells)[:, None, None].expand(-1, 1, 2)

    centers = level_centers([(1, cells)], ratios)

    assert torch.equal(centers[:, 0, 0], 0.5 / valid)


def test_proposals_are_logits_of_boxes_that_grow_with_the_level():
    centers = level_centers([(4, 4), (2, 2)], torch.ones(1, 2, 2))

    boxes = level_proposals(centers, [(4, 4), (2, 2)]).sigmoid()

    torch.testing.assert_close(boxes[..., :2], centers)
    torch.testing.assert_close(boxes[0, :16, 2:], torch.full((16, 2), 0.05))
    torch.testing.assert_close(boxes[0, 16:, 2:], torch.full((4, 2), 0.1))


@pytest.mark.parametrize(('cells', 'inside'), [(49, 49), (50, 48), (51, 49)])
def test_cells_too_close_to_the_border_propose_nothing(cells, inside):
    proposals = level_proposals(
        level_centers([(1, cells)], torch.ones(1, 1, 2)), [(1, cells)]
    )

    assert proposals.isfinite().all(-1).sum() == inside
    assert proposals[~proposals.isfinite()].eq(float('inf')).all()


def test_padding_proposes_nothing():
    ratios = torch.tensor([[[0.5, 1.0]]])
    padding = torch.tensor([[False, False, True, True]])

    proposals = level_proposals(level_centers([(1, 4)], ratios), [(1, 4)], padding)

    assert torch.equal(proposals.isinf().any(-1), padding)


LEVELS = torch.tensor([[4, 8], [2, 5]])  # (height, width)


def test_offsets_from_points_are_in_cells_of_the_level():
    references = torch.rand(1, 3, 2, 2)
    offsets = torch.randn(1, 3, 2, 2, 4, 2)  # (B, Q, heads, levels, points, 2)

    points = sampling_points(references, offsets, LEVELS)

    for level, (height, width) in enumerate(LEVELS.tolist()):
        x = (
            references[:, :, None, level, None, 0]
            + offsets[:, :, :, level, :, 0] / width
        )
        y = (
            references[:, :, None, level, None, 1]
            + offsets[:, :, :, level, :, 1] / height
        )
        torch.testing.assert_close(points[:, :, :, level], torch.stack([x, y], -1))


def test_offsets_from_boxes_are_in_halves_of_the_box_over_the_number_of_points():
    boxes = torch.rand(1, 3, 2, 4)
    offsets = torch.randn(1, 3, 2, 2, 4, 2)

    points = sampling_points(boxes, offsets, LEVELS)

    centers, sides = boxes[:, :, None, :, None, :2], boxes[:, :, None, :, None, 2:]
    torch.testing.assert_close(points, centers + offsets / 4 * sides / 2)
