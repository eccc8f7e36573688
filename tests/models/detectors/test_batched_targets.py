"""Targets of a batch, compared with mmdet's, which are computed image by image."""

import pytest
import torch
from mmdet.models.dense_heads import DINOHead
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from mmsparse.models.detectors.batched_targets import BatchedTargets

QUERIES, CLASSES = 12, 4


class BatchedHead(BatchedTargets, DINOHead):
    pass


def head(cls):
    costs = [
        dict(type='FocalLossCost', weight=2.0),
        dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
        dict(type='IoUCost', iou_mode='giou', weight=2.0),
    ]
    assigner = dict(type='HungarianAssigner', match_costs=costs)
    with DefaultScope.overwrite_default_scope('mmdet'):
        return cls(
            num_classes=CLASSES,
            loss_cls=dict(type='FocalLoss', use_sigmoid=True),
            train_cfg=dict(assigner=assigner),
            num_pred_layer=2,
        )


def batch(counts):
    """Images of different sizes with so many boxes each."""
    metas = [dict(img_shape=(64 + 8 * i, 96 - 8 * i)) for i in range(len(counts))]
    truths = []
    for count, meta in zip(counts, metas, strict=True):
        height, width = meta['img_shape']
        corners = torch.rand(count, 2, 2).sort(dim=1).values
        boxes = corners * torch.tensor([width, height])
        labels = torch.randint(CLASSES, (count,))
        truths.append(InstanceData(bboxes=boxes.flatten(1), labels=labels))
    logits = torch.randn(len(counts), QUERIES, CLASSES)
    return list(logits), list(torch.rand(len(counts), QUERIES, 4)), truths, metas


# With 20 boxes, there are more than queries.
@pytest.mark.parametrize('counts', [(3,), (2, 0, 5), (0, 0), (20, 1)])
def test_targets_are_those_of_mmdet(counts):
    given = batch(counts)

    *actual, positive, negative = head(BatchedHead).get_targets(*given)
    *expected, mmdet_positive, mmdet_negative = head(DINOHead).get_targets(*given)

    assert (positive, negative) == (mmdet_positive, mmdet_negative)
    for got, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, list(wanted))


def test_logits_that_are_nan_are_an_error_as_in_mmdet():
    logits, *rest = batch((2, 1))
    logits[1][0] = float('nan')

    with pytest.raises(ValueError, match='invalid numeric entries'):
        head(BatchedHead).get_targets(logits, *rest)
