"""Metric that counts which classes are predicted for each true class, and draws it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.evaluator import BaseMetric
from torch import Tensor
from torchvision.ops import box_iou

from mmsparse.registry import METRICS

BACKGROUND = 'background'
LEGIBLE = 30  # classes up to which percentages are written into the cells


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Matrix of true and predicted classes of images, pixels or boxes.

    Boxes are matched by descending score, each with the free true box of the highest
    IoU; those without match are confused with the background. Pixels with label 255 and
    predictions on ignored boxes, such as crowds, do not count. Boxes must be in the
    coordinates of the original image, as mmdet's test pipelines load them.

    The metric ``correct`` is the share of images, pixels or true boxes whose class is
    predicted.

    Args:
        out: PNG file to write. A JSON file next to it has the classes and counts, with
            a row for each true class.
        score_thr: Boxes with lower scores are left out.
        iou_thr: IoU from which boxes match.
        **options: Arguments of mmengine's ``BaseMetric``.
    """

    default_prefix = 'confusion_matrix'

    def __init__(
        self, out: str, score_thr: float = 0.3, iou_thr: float = 0.5, **options: Any
    ) -> None:
        super().__init__(**options)
        self.out = Path(out)
        self.score_thr, self.iou_thr = score_thr, iou_thr

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count pairs of true and predicted classes in each image."""
        for sample in data_samples:
            pairs = torch.stack(self._pairs(sample), dim=-1).long().cpu()
            self.results.append(torch.unique(pairs, dim=0, return_counts=True))

    def _pairs(self, sample: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return true and predicted classes of all images, pixels or boxes, (N,)."""
        classes = len(self.dataset_meta['classes'])
        if 'pred_label' in sample:
            return sample['gt_label'], sample['pred_label']
        if 'pred_sem_seg' in sample:
            true, predicted = (
                sample[name]['data'].flatten()
                for name in ('gt_sem_seg', 'pred_sem_seg')
            )
            known = true < classes
            return true[known], predicted[known]
        if 'pred_instances' in sample:
            return self._pairs_of_boxes(sample, background=classes)
        raise ValueError(
            f'Samples must have pred_label, pred_sem_seg or pred_instances; got '
            f'{sorted(sample)}.'
        )

    def _pairs_of_boxes(
        self, sample: dict[str, Any], background: int
    ) -> tuple[Tensor, Tensor]:
        found, ignored = sample['pred_instances'], sample.get('ignored_instances')
        order = found['scores'].argsort(descending=True)
        order = order[found['scores'][order] >= self.score_thr]
        boxes, labels = found['bboxes'][order], found['labels'][order]
        true_boxes, true_labels = _boxes(sample['gt_instances'])
        # The last entry is the background, which -1 also indexes.
        true_labels = torch.cat([true_labels, true_labels.new_tensor([background])])

        partners = match_boxes(box_iou(boxes, true_boxes), self.iou_thr)
        counted = partners >= 0
        if ignored is not None:
            overlaps = box_iou(boxes, _boxes(ignored)[0])
            counted |= ~(overlaps >= self.iou_thr).any(1)
        missed = torch.ones_like(true_labels, dtype=torch.bool)
        missed[partners] = missed[-1] = False
        missed = true_labels[missed]
        return (
            torch.cat([true_labels[partners[counted]], missed]),
            torch.cat([labels[counted], torch.full_like(missed, background)]),
        )

    def compute_metrics(self, results: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Write the matrix and return the share of right classes; NaN without data."""
        classes = [*self.dataset_meta['classes'], BACKGROUND]
        counts = torch.zeros(len(classes), len(classes), dtype=torch.long)
        for pairs, numbers in results:
            counts[tuple(pairs.T)] += numbers
        if not counts[-1].any() and not counts[:, -1].any():
            classes, counts = classes[:-1], counts[:-1, :-1]
        self.out.parent.mkdir(parents=True, exist_ok=True)
        content = dict(classes=classes, counts=counts.tolist())
        self.out.with_suffix('.json').write_text(json.dumps(content) + '\n')
        draw(counts, classes).savefig(self.out)
        true = counts[: len(self.dataset_meta['classes'])]
        return dict(correct=(true.diagonal().sum() / true.sum()).item())


def match_boxes(ious: Tensor, iou_thr: float) -> Tensor:
    """Match each predicted box, in order, with the free true box of the highest IoU.

    Args:
        ious: IoU of predicted and true boxes, (N, M).
        iou_thr: The least IoU of a match.

    Returns:
        Indices of true boxes, -1 for none, (N,).
    """
    ious = ious.clone()
    partners = ious.new_full((len(ious),), -1, dtype=torch.long)
    for i in range(len(ious) if ious.numel() else 0):
        best = ious[i].argmax()
        if ious[i, best] >= iou_thr:
            partners[i] = best
            ious[:, best] = -1.0
    return partners


def draw(counts: Tensor, classes: Sequence[str]) -> Figure:
    """Draw a matrix in percent of each true class.

    Args:
        counts: Rows are true, columns predicted classes, (C, C).
        classes: Their names.

    Returns:
        A figure that grows with the classes.
    """
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    side = min(3 + 0.5 * len(classes), 30)
    figure = Figure((side + 1, side), layout='constrained', dpi=120)
    axis = figure.subplots()
    shown = axis.imshow(percent, cmap='Blues', vmin=0, vmax=100)
    figure.colorbar(shown, label='% of the true class')
    ticks = range(len(classes))
    axis.set_xticks(ticks, classes, rotation=90)
    axis.set_yticks(ticks, classes)
    axis.set_xlabel('predicted')
    axis.set_ylabel('true')
    for row, column in torch.nonzero(counts).tolist() if len(ticks) <= LEGIBLE else ():
        value = percent[row, column].item()
        color = 'white' if value > 50 else 'black'
        axis.text(column, row, f'{value:.0f}', color=color, ha='center', va='center')
    return figure


def _boxes(instances: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return boxes, (M, 4), and labels of instances of mmdet."""
    boxes = instances['bboxes']
    return getattr(boxes, 'tensor', boxes), instances['labels']
