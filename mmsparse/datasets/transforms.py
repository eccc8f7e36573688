"""Transforms for configs: checks of images and label maps."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from PIL import Image

from mmsparse.registry import TRANSFORMS

IGNORED = 255  # label of pixels without a class
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF: rotated by 90 or 270 degrees


@TRANSFORMS.register_module()
class CheckImage(BaseTransform):
    """Raise ValueError for an image that does not have the size of its annotations.

    Put it right after ``LoadImageFromFile``, in training and test pipelines. Samples
    without ``width`` and ``height`` of annotations pass, and one pixel is tolerated.

    Args:
        imdecode_backend: That of ``LoadImageFromFile``. With 'pillow', gray images of
            more than 8 bits raise ValueError too: they would become white.
    """

    def __init__(self, imdecode_backend: str = 'cv2') -> None:
        self.imdecode_backend = imdecode_backend

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return a sample unchanged, or raise ValueError."""
        path, (height, width) = results['img_path'], results['ori_shape'][:2]
        annotated = results.get('width'), results.get('height')
        if None not in annotated and (
            abs(annotated[0] - width) > 1 or abs(annotated[1] - height) > 1
        ):
            advice = _exif_advice(path, annotated) or (
                'it was resized, or width and height are wrong; scale the annotations, '
                'or use the original image'
            )
            raise ValueError(
                f'{path}: the image has width x height {_times((width, height))}, but '
                f'its annotations are for {_times(annotated)}: {advice}.'
            )
        if self.imdecode_backend == 'pillow' and _mode(path)[:1] in ('I', 'F'):
            raise ValueError(
                f'{path}: the pillow backend cannot read a gray image of more than 8 '
                f"bits; set imdecode_backend='cv2' of LoadImageFromFile."
            )
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(imdecode_backend={self.imdecode_backend!r})'


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
            _check_backend(labels, results)
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
            path = results['img_path']
            advice = _exif_advice(path, labels.shape[::-1])
            raise ValueError(
                f'{name}: the label map has height x width {_times(labels.shape)}, '
                f'but its image {path} has {_times(size)}'
                f'{advice and f": {advice}"}.'
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
                f'reduce_zero_label={bool(reduced)}).{_jpeg_advice(results)}'
            )

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_classes={self.num_classes})'


def _check_backend(labels: np.ndarray, results: dict[str, Any]) -> None:
    """Raise ValueError if another backend than mmseg's default has changed labels."""
    path, mode = results['seg_map_path'], _mode(results['seg_map_path'])
    white = not results.get('reduce_zero_label') and (labels == IGNORED).any()
    if (mode == 'P' and labels.ndim == 3) or (mode == '1' and white):
        raise ValueError(
            f"{path}: this file of pillow's mode {mode!r} has no labels if cv2 reads "
            f"it; set imdecode_backend='pillow' of LoadAnnotations."
        )


def _check_bits(path: str) -> None:
    """Raise ValueError if mmseg truncated labels of more than 8 bits."""
    if _mode(path)[:1] not in ('I', 'F'):
        return
    with Image.open(path) as image:
        largest = np.asarray(image).max()
    if largest > IGNORED:
        raise ValueError(
            f'{path}: labels must be at most {IGNORED}; got {largest}. Save them with '
            f'8 bits.'
        )


def _jpeg_advice(results: dict[str, Any]) -> str:
    is_jpeg = Path(results['seg_map_path']).suffix.lower() in ('.jpg', '.jpeg')
    return ' JPEG changes labels: save label maps as PNG.' if is_jpeg else ''


def _exif_advice(path: str, annotated: tuple[int, ...]) -> str:
    """Return how to decode an image as annotated; '' if it is not its EXIF rotation.

    ``annotated`` is width and height.
    """
    orientation, size = 1, (0, 0)
    with suppress(OSError), Image.open(path) as image:
        orientation, size = image.getexif().get(ORIENTATION), image.size
    if orientation in SIDEWAYS and size == tuple(annotated):
        return (
            'it was annotated before its EXIF rotation; set '
            "color_type='color_ignore_orientation' of LoadImageFromFile in every "
            'pipeline'
        )
    if orientation in SIDEWAYS and size == tuple(annotated)[::-1]:
        return (
            'it was annotated after its EXIF rotation, which LoadImageFromFile '
            "ignores; set its color_type='color' and imdecode_backend='cv2'"
        )
    return ''


def _mode(path: str) -> str:
    """Return pillow's mode of an image, '' if it is in another file system."""
    with suppress(OSError), Image.open(path) as image:
        return image.mode
    return ''


def _times(shape: tuple[int, ...]) -> str:
    return ' x '.join(map(str, shape))
