"""Predictions as plain data for JSON, as a label map, and as a line of text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from numpy.typing import NDArray

SHOWN = 5  # classes in a line


class Results:
    """Converts the predictions of a model.

    Args:
        classes: Names of the classes; empty if they are not known.
        score_thr: Minimum score of an object in a line of text.
    """

    def __init__(self, classes: Sequence[str], score_thr: float) -> None:
        self.classes = classes
        self.score_thr = score_thr

    def as_json(self, result: BaseDataElement) -> dict[str, Any]:
        """Return a prediction as plain data, with the keys of the hosts' inferencers.

        Boxes (x1, y1, x2, y2) are in pixels of the image, and masks run-length encoded
        as in COCO. Of a segmentor it has the number of pixels of every class.
        """
        if 'pred_instances' in result:
            return self._instances(result.pred_instances)
        if 'pred_sem_seg' in result:
            return dict(classes=self._areas(result))
        scores = result.pred_score
        label = int(scores.argmax())
        return dict(
            pred_label=label,
            pred_score=_rounded(scores[label]),
            pred_class=self._name(label),
            pred_scores=_rounded(scores),
        )

    def label_map(self, result: BaseDataElement) -> NDArray[np.unsignedinteger] | None:
        """Return the class of every pixel, from 0, (H, W), or None."""
        if 'pred_sem_seg' not in result or 'pred_instances' in result:
            return None
        labels = result.pred_sem_seg.data[0].numpy()
        return labels.astype(np.uint8 if labels.max() < 256 else np.uint16)

    def describe(self, result: BaseDataElement) -> str:
        """Describe a prediction in a line."""
        if 'pred_instances' in result:
            found = result.pred_instances
            kept = found.get('scores', torch.ones(len(found))) >= self.score_thr
            counts = Counter(found.labels[kept].tolist()).most_common()
            shown = [f'{self._name(label)}: {count}' for label, count in counts]
            return _join(shown) or f'no score of {self.score_thr:g} or more'
        if 'pred_sem_seg' in result:
            areas = sorted(self._areas(result), key=lambda x: -x['pixels'])
            total = sum(area['pixels'] for area in areas)
            return _join(
                [f'{area["name"]} {area["pixels"] / total:.0%}' for area in areas]
            )
        score, label = result.pred_score.max(-1)
        return f'{self._name(int(label))} ({float(score):.2f})'

    def _instances(self, found: Any) -> dict[str, Any]:
        content: dict[str, Any] = dict(labels=found.labels.tolist())
        content['names'] = [self._name(label) for label in content['labels']]
        for key, digits in (('scores', 5), ('bboxes', 2)):
            if key in found:
                content[key] = _rounded(found[key], digits)
        if 'masks' in found:
            content['masks'] = [_encode(mask) for mask in found.masks.numpy()]
        return content

    def _areas(self, result: BaseDataElement) -> list[dict[str, Any]]:
        labels, pixels = result.pred_sem_seg.data.unique(return_counts=True)
        return [
            dict(label=label, name=self._name(label), pixels=count)
            for label, count in zip(labels.tolist(), pixels.tolist(), strict=True)
        ]

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f'class {label}'


def _join(parts: Sequence[str]) -> str:
    more = f' and {len(parts) - SHOWN} more' if len(parts) > SHOWN else ''
    return ', '.join(parts[:SHOWN]) + more


def _rounded(values: torch.Tensor, digits: int = 5) -> Any:
    return values.double().numpy().round(digits).tolist()


def _encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as coco  # which only mmdet needs

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=encoded['size'], counts=encoded['counts'].decode())
