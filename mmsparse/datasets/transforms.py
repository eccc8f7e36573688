"""What our configs do to data beyond what the hosts do."""

from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmsparse.registry import TRANSFORMS

IGNORED = 255  # the hosts' number of what has no class


@TRANSFORMS.register_module()
class CheckSegLabels(BaseTransform):
    """Refuse a label map that does not fit its picture or the classes.

    It stands right after mmsegmentation's ``LoadAnnotations``, in training and in test
    pipelines, and passes what has no label map.

    Args:
        num_classes: Number of classes, without the label that ``reduce_zero_label``
            takes away.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check one sample.

        Args:
            results: The sample: ``gt_seg_map``, (H, W), as it was loaded, and
                ``ori_shape``, height and width of the picture's file.

        Returns:
            The sample.

        Raises:
            ValueError: The map has another size, more than one channel, or labels out
                of range, those beyond 255 of a file of 16 bits included; names its file
                and what was found.
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
                f'{name}: a label map has one number for each pixel, (H, W); found '
                f'the shape {labels.shape}. Colors are no labels: write their numbers '
                f'as a gray or palette picture.'
            )
        if labels.shape != size:
            raise ValueError(
                f'{name}: the label map has height x width {_times(labels.shape)}, '
                f'but its picture {results["img_path"]} has {_times(size)}.'
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
                f'{"0 or " * reduced}{IGNORED} for what has no class; found {wrong} '
                f'(num_classes={self.num_classes}, '
                f'reduce_zero_label={bool(reduced)}).'
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes})'


def _check_bits(path: str) -> None:
    """Raise ValueError if labels of more than 8 bits were cut, as the host does."""
    if not Path(path).is_file():  # it is in another file system
        return
    with Image.open(path) as picture:
        if picture.mode[0] in 'IF' and (largest := np.asarray(picture).max()) > IGNORED:
            raise ValueError(
                f'{path}: labels must be at most {IGNORED}; found {largest}. Write '
                f'them with 8 bits.'
            )


def _times(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
