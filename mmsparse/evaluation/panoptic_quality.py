"""Panoptic quality of segments."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.evaluation.metrics.coco_panoptic_metric import (
    parse_pq_results,
    print_panoptic_table,
)
from mmengine.evaluator import BaseMetric
from mmengine.fileio import get
from mmengine.logging import MMLogger

from mmsparse.datasets.panoptic import segment_ids
from mmsparse.errors import UsageError
from mmsparse.registry import METRICS

VOID = -1  # label of pixels without a segment
IOU, TP, FP, FN = range(4)  # columns of counts


@METRICS.register_module()
class PanopticQuality(BaseMetric):
    """PQ, SQ and RQ of all classes, of things (``_th``) and of stuff (``_st``).

    Paper: `Panoptic Segmentation <https://arxiv.org/abs/1801.00868>`_, section 4. The
    results are those of mmdet's ``CocoPanopticMetric``, without the package
    ``panopticapi`` and temporary files, and for data with things or stuff alone, whose
    other qualities are NaN.

    Args:
        ann_file: Annotation file in COCO's panoptic format.
        seg_prefix: Folder of its PNG files.
        classwise: Also print the qualities of every class.
        backend_args: Settings of mmengine's file backend.
        **arguments: Those of mmengine's BaseMetric.

    Raises:
        UsageError: An image is not in the annotation file.
    """

    default_prefix = 'coco_panoptic'

    def __init__(
        self,
        ann_file: str,
        seg_prefix: str,
        classwise: bool = False,
        backend_args: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        content = json.loads(get(ann_file, backend_args=backend_args))
        self._names = {x['id']: x['name'] for x in content['categories']}
        self._truths = {x['image_id']: x for x in content['annotations']}
        self.ann_file = ann_file
        self.seg_prefix = seg_prefix
        self.classwise = classwise
        self.backend_args = backend_args

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Count matched and unmatched segments of a batch by class."""
        classes = list(self.dataset_meta['classes'])
        for sample in data_samples:
            truth = self._truth(sample['img_id'])
            path = Path(self.seg_prefix, truth['file_name'])
            ids = segment_ids(get(path, backend_args=self.backend_args))
            labels, crowds = {}, set()
            for segment in truth['segments_info']:
                name = self._names[segment['category_id']]
                labels[segment['id']] = classes.index(name) if name in classes else VOID
                if segment.get('iscrowd'):
                    crowds.add(segment['id'])
            predicted = sample['pred_panoptic_seg']['sem_seg'][0].cpu().numpy()
            self.results.append(
                count_segments(ids, labels, crowds, predicted, len(classes))
            )

    def _truth(self, img_id: Any) -> dict[str, Any]:
        if img_id not in self._truths:
            raise UsageError(
                f'{self.ann_file} has no segments of the image with id {img_id!r}; set '
                f'ann_file of PanopticQuality to that of the data set.'
            )
        return self._truths[img_id]

    def compute_metrics(self, results: list[np.ndarray]) -> dict[str, float]:
        """Return the qualities over all images, in percent."""
        counts = np.sum(results, axis=0)  # (classes, 4)
        classes, things = (self.dataset_meta[x] for x in ('classes', 'thing_classes'))
        is_thing = np.array([name in things for name in classes])
        groups = {
            'All': np.ones_like(is_thing),
            'Things': is_thing,
            'Stuff': ~is_thing,
        }
        found = {name: average_quality(counts[rows]) for name, rows in groups.items()}
        each = None
        if self.classwise:
            each = {
                name: average_quality(counts[i : i + 1])
                for i, name in enumerate(classes)
            }
        print_panoptic_table(found, each, logger=MMLogger.get_current_instance())
        return parse_pq_results(found)


def count_segments(
    ids: np.ndarray,
    labels: dict[int, int],
    crowds: set[int],
    predicted: np.ndarray,
    num_classes: int,
) -> np.ndarray:
    """Match the predicted segments of an image with the true ones.

    Args:
        ids: Id of the true segment of every pixel, (H, W).
        labels: Class of every true segment by its id; pixels of others are void.
        crowds: Ids of true segments that are no single object.
        predicted: Class + ``INSTANCE_OFFSET`` * instance of every pixel, (H, W); those
            of class ``num_classes`` have no segment.
        num_classes: Number of classes.

    Returns:
        For each class the sum of the IoUs of matched segments, and the numbers of
        matched, only predicted and only true segments, (classes, 4).
    """
    # 1. Areas of all overlaps, (T, P), with the classes of their segments.
    true_ids, rows = np.unique(ids, return_inverse=True)
    values, columns = np.unique(predicted, return_inverse=True)
    shape = len(true_ids), len(values)
    pairs = np.ravel_multi_index((rows.ravel(), columns.ravel()), shape)
    overlap = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
    truth = np.array([labels.get(number, VOID) for number in true_ids.tolist()])
    crowd = np.array([number in crowds for number in true_ids.tolist()])
    found = np.where(
        values % INSTANCE_OFFSET < num_classes, values % INSTANCE_OFFSET, -2
    )
    same = truth[:, None] == found

    # 2. IoU without void pixels. Above one half, a segment has one match at most.
    in_void = overlap[truth == VOID].sum(0)
    areas = overlap.sum(0)
    union = overlap.sum(1, keepdims=True) + areas - overlap - in_void
    iou = overlap / union.clip(min=1)
    single = (truth != VOID) & ~crowd
    matched = (iou > 0.5) & same & single[:, None]

    # 3. A prediction that is mostly void or crowd is no mistake.
    ignored = in_void + (overlap * (same & crowd[:, None])).sum(0)
    wrong = (found >= 0) & ~matched.any(0) & (2 * ignored <= areas)
    missed = single & ~matched.any(1)
    counts = np.zeros((num_classes, 4))
    of_match = truth[matched.nonzero()[0]]
    np.add.at(counts[:, IOU], of_match, iou[matched])
    for column, classes in ((TP, of_match), (FP, found[wrong]), (FN, truth[missed])):
        counts[:, column] = np.bincount(classes, minlength=num_classes)
    return counts


def average_quality(counts: np.ndarray) -> dict[str, float]:
    """Average the qualities of the classes that occur, (classes, 4); NaN for none."""
    counts = counts[counts[:, TP:].any(1)]
    if not len(counts):
        return dict(pq=np.nan, sq=np.nan, rq=np.nan, n=0)
    iou, tp, fp, fn = counts.T
    size = tp + (fp + fn) / 2
    qualities = dict(pq=iou / size, sq=iou / tp.clip(min=1), rq=tp / size)
    return {name: float(x.mean()) for name, x in qualities.items()} | dict(
        n=len(counts)
    )
