import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops.foreground import binary_focal_loss, cells_by_reach, cells_by_size


def labeled(boxes, size, stride, fits):
    """Label cell by cell and box by box."""
    height, width = size
    out = torch.zeros(len(boxes), height * width, dtype=torch.bool)
    for b in range(len(boxes)):
        for cell in range(height * width):
            y, x = (stride * i + stride // 2 for i in divmod(cell, width))
            for x1, y1, x2, y2 in boxes[b].tolist():
                sides = (x - x1, y - y1, x2 - x, y2 - y)
                out[b, cell] |= min(sides) > 0 and fits(sides, (x2 - x1, y2 - y1))
    return out


@pytest.fixture
def boxes():
    """In pixels and half pixels, so that sides and limits meet cell centers."""
    corners = torch.randint(0, 180, (2, 9, 2, 2)) / 2
    boxes = torch.cat([corners.amin(2), corners.amax(2) + 0.5], -1)
    boxes[1, 4:] = -1  # fills the batch
    return boxes


@pytest.mark.parametrize('size', [(11, 7), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize(('low', 'high'), [(-1, 16), (16, 32), (30, float('inf'))])
def test_a_cell_reaches_the_farthest_side_of_a_box(boxes, size, low, high):
    actual = cells_by_reach(boxes, size, 8, low, high)

    expected = labeled(boxes, size, 8, lambda sides, _: low < max(sides) <= high)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize('size', [(11, 7), (1, 5), (1, 1)], ids=str)
@pytest.mark.parametrize(('low', 'high'), [(0, 16), (8, 32), (30, float('inf'))])
def test_a_cell_is_in_a_box_of_a_fitting_size(boxes, size, low, high):
    actual = cells_by_size(boxes, size, 8, low, high)

    expected = labeled(boxes, size, 8, lambda _, box: low <= max(box) / 2 <= high)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize('label', [cells_by_reach, cells_by_size])
def test_without_boxes_no_cell_is_labeled(label):
    cells = label(torch.zeros(2, 0, 4), (3, 5), 8, -1, 64)

    assert cells.shape == (2, 15)
    assert not cells.any()


@pytest.mark.parametrize('gamma', [0.0, 2.0])
def test_focal_loss_is_weighted_cross_entropy(gamma):
    logits = torch.randn(50, dtype=torch.double)
    targets = torch.rand(50) < 0.3

    loss = binary_focal_loss(logits.float(), targets, 0.25, gamma)

    p = torch.where(targets, logits.sigmoid(), 1 - logits.sigmoid())
    weights = torch.where(targets, 0.25, 0.75)
    expected = -weights * (1 - p) ** gamma * p.log()
    torch.testing.assert_close(loss, expected.float())
    entropy = F.binary_cross_entropy_with_logits(
        logits, targets.double(), weights, reduction='none'
    )
    if gamma == 0:
        torch.testing.assert_close(loss, entropy.float())


def test_focal_loss_is_finite_for_logits_of_any_size():
    logits = torch.tensor([17.0, 200.0, -17.0, -200.0], requires_grad=True)

    for targets in (torch.ones(4) > 0, torch.zeros(4) > 0):
        loss = binary_focal_loss(logits, targets, 0.25, 2.0)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
