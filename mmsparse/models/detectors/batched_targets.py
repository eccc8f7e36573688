"""Targets of a DETR head, matched for all images of a batch at once."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor

ABSENT = -1e4  # class logits of predictions that do not count


class BatchedTargets:
    """Mixin for heads of mmdet's DETRs; the targets are those of mmdet.

    mmdet computes the matching costs image by image, in some thirty operations each,
    and waits for the GPU as often. Here one cost matrix has the predictions and boxes
    of all images, in coordinates normalized by the size of the image.
    """

    def get_targets(
        self,
        cls_scores_list: Sequence[Tensor],
        bbox_preds_list: Sequence[Tensor],
        batch_gt_instances: Sequence[InstanceData],
        batch_img_metas: Sequence[dict[str, Any]],
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], int, int]:
        """Match predictions with boxes.

        Args:
            cls_scores_list: Class logits of every image, (Q, classes); ``ABSENT`` for
                predictions that must not be matched.
            bbox_preds_list: (cx, cy, w, h) from 0 to 1 of every image, (Q, 4).
            batch_gt_instances: Boxes (x1, y1, x2, y2) in pixels and labels.
            batch_img_metas: With ``img_shape``.

        Returns:
            One tensor per image of labels, label weights, box targets and box weights,
            and the total numbers of positive and negative predictions.
        """
        preds = torch.stack(tuple(bbox_preds_list)).detach()  # (B, Q, 4)
        num_images, num_queries = preds.shape[:2]
        boxes = [
            instances.bboxes / _box_scale(instances.bboxes, meta)
            for instances, meta in zip(batch_gt_instances, batch_img_metas, strict=True)
        ]
        counts = [len(x) for x in boxes]
        merged = torch.cat(boxes)  # (M, 4)
        gt_labels = torch.cat([x.labels for x in batch_gt_instances])

        # 1. Match within every image.
        logits = torch.cat(tuple(cls_scores_list)).detach()
        cost = self._match_cost(logits, preds.flatten(0, 1), merged, gt_labels)
        cost = cost.masked_fill(logits[:, :1] <= ABSENT, float('inf'))
        rows, columns = _match(cost.view(num_images, num_queries, -1), counts)

        # 2. Give the matched predictions, numbered across the batch, their targets.
        labels = gt_labels.new_full((num_images * num_queries,), self.num_classes)
        labels[rows] = gt_labels[columns]
        targets = merged.new_zeros(num_images * num_queries, 4)
        targets[rows] = bbox_xyxy_to_cxcywh(merged[columns])
        weights = torch.zeros_like(targets)
        weights[rows] = 1
        flat = (labels, merged.new_ones(len(labels)), targets, weights)
        per_image = [list(x.split(num_queries)) for x in flat]
        return *per_image, len(rows), len(labels) - len(rows)

    def _match_cost(
        self, logits: Tensor, preds: Tensor, boxes: Tensor, labels: Tensor
    ) -> Tensor:
        """Return the cost of every pair of a prediction and a box, (B * Q, M)."""
        if not len(boxes):
            return preds.new_zeros(len(preds), 0)
        predicted = InstanceData(scores=logits, bboxes=bbox_cxcywh_to_xyxy(preds))
        truth = InstanceData(labels=labels, bboxes=boxes)
        costs = [
            cost(predicted, truth, img_meta=dict(img_shape=(1, 1)))
            for cost in self.assigner.match_costs
        ]
        return torch.stack(costs).sum(0)


def _box_scale(boxes: Tensor, meta: dict[str, Any]) -> Tensor:
    height, width = meta['img_shape']
    return boxes.new_tensor([width, height, width, height])


def _match(cost: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return matched predictions and boxes, both numbered across the batch.

    Predictions of infinite cost are left out.
    """
    rows, columns, first = [], [], 0
    for image, matrix in enumerate(cost.cpu()):
        own = matrix[:, first : first + counts[image]]
        present = (~own.isinf().any(1)).nonzero()[:, 0]
        row, column = map(torch.from_numpy, linear_sum_assignment(own[present]))
        rows.append(present[row] + image * len(matrix))
        columns.append(column + first)
        first += counts[image]
    return torch.cat(rows).to(cost.device), torch.cat(columns).to(cost.device)
