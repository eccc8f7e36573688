import math

import pytest
import torch

from mmsparse.models.detectors import ForegroundLoss
from mmsparse.ops.foreground import binary_focal_loss

SIZES = ((8, 10), (4, 5), (2, 3), (1, 2))
TOKENS = 80 + 20 + 6 + 2
BOXES = [torch.tensor([[3.0, 3.0, 60.0, 40.0], [0.0, 0.0, 70.0, 64.0]])]


@pytest.mark.parametrize(
    ('assign', 'expected'),
    [
        ('reach', ((-1, 64), (64, 128), (128, 256), (256, math.inf))),
        ('size', ((0, 128), (64, 192), (128, 384), (256, math.inf))),
    ],
)
def test_default_size_ranges_follow_from_the_strides(assign, expected):
    assert ForegroundLoss(assign=assign).size_ranges == expected


def test_a_box_assigned_by_size_is_foreground_on_two_levels():
    boxes = [torch.tensor([[0.0, 0.0, 160.0, 64.0]])]  # half its side is 80

    targets = ForegroundLoss(assign='size').targets(boxes, SIZES)

    levels = targets.split([80, 20, 6, 2], dim=1)
    assert [bool(level.any()) for level in levels] == [True, True, False, False]


@pytest.mark.parametrize('norm', ['image', 'batch'])
def test_the_loss_is_normalized_by_the_number_of_foreground_tokens(norm):
    loss = ForegroundLoss(norm=norm)
    logits = torch.randn(3, TOKENS)
    boxes = [*BOXES, torch.zeros(0, 4), BOXES[0][:1]]

    targets = loss.targets(boxes, SIZES)
    sums = binary_focal_loss(logits, targets, 0.25, 2.0).sum(1)
    counts = targets.sum(1)

    assert counts[1] == 0 < counts[2] < counts[0]
    expected = sums.sum() / counts.sum()
    if norm == 'image':
        expected = (sums[0] / counts[0] + sums[1] + sums[2] / counts[2]) / 3
    torch.testing.assert_close(loss(logits, boxes, SIZES), 1.5 * expected)


@pytest.mark.parametrize('norm', ['image', 'batch'])
def test_a_batch_without_boxes_has_a_finite_loss(norm):
    logits = torch.randn(2, TOKENS, requires_grad=True)

    loss = ForegroundLoss(norm=norm)(logits, [torch.zeros(0, 4)] * 2, SIZES)
    loss.backward()

    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(assign='center'), "assign must be one of .* got 'center'"),
        (dict(norm='sum'), "norm must be one of .* got 'sum'"),
        (dict(size_ranges=[(0, 64)]), r'for each of the strides \(8, 16, 32, 64\)'),
    ],
)
def test_invalid_arguments_raise_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ForegroundLoss(**arguments)
