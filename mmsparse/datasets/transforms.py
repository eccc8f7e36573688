"""Transforms for configs: a check of label maps."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmsparse.registry import TRANSFORMS

IGNORED = 255  # label of pixels without a class


@TRANSFORMS.register_module()
class CheckSegLabels(BaseTransform):
    """Raise ValueError for a label map that does not fit its image or the classes.

    Put it right after ``LoadAnnotations`` of mmseg, in training and test pipelines.
    Samples without a label map pass.

    Args:
        num_classes: Number of classes, without the label that ``reduce_zero_label``
            removes.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return a sample unchanged, or raise ValueError.

        Labels above 255 in a 16-bit file are out of range too.
        """
        labels = results.get('gt_seg_map')
        if labels is not None:
            self._check_size(labels, results)
            self._check_range(labels, results)
            _check_bits(results['seg_map_path'])
        return results

    def _check_size(self, labels: np.ndarray, results: dict[str, Any]) -> None:
        name, size = results['seg_map_path'], tuple(results['ori_shape'])
        if labels.ndim != 2:
            raise ValueError(
                f'{name}: a label map must have one label per pixel, (H, W); got the '
                f'shape {labels.shape}. Convert colors to labels, saved as a gray or '
                f'palette image.'
            )
        if labels.shape != size:
            raise ValueError(
                f'{name}: the label map has height x width {_times(labels.shape)}, '
                f'but its image {results["img_path"]} has {_times(size)}.'
            )

    def _check_range(self, labels: np.ndarray, results: dict[str, Any]) -> None:
        found = np.flatnonzero(np.bincount(labels.ravel(), minlength=IGNORED + 1))
        wrong = found[(found >= self.num_classes) & (found != IGNORED)]
        if len(wrong):
            reduced = int(bool(results.get('reduce_zero_label')))
            wrong = ', '.join(str(label + reduced) for label in wrong)
            raise ValueError(
                f'{results["seg_map_path"]}: labels must be from {reduced} to '
                f'{self.num_classes - 1 + reduced}, or '
                f'{"0 or " * reduced}{IGNORED} for pixels without a class; got {wrong} '
                f'(num_classes={self.num_classes}, '
                f'reduce_zero_label={bool(reduced)}).'
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes})'


def _check_bits(path: str) -> None:
    """Raise ValueError if mmseg truncated labels of more than 8 bits."""
    if not Path(path).is_file():  # in another file system
        return
    with Image.open(path) as image:
        if image.mode[0] in 'IF' and (largest := np.asarray(image).max()) > IGNORED:
            raise ValueError(
                f'{path}: labels must be at most {IGNORED}; got {largest}. Save them '
                f'with 8 bits.'
            )


def _times(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
