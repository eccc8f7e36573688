"""Load the segments of panoptic annotations as objects with boxes and masks."""

from collections.abc import Mapping
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.structures.bbox import get_box_type
from mmdet.structures.mask import BitmapMasks
from mmengine.fileio import get

from mmsparse.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadPanopticSegments(LoadAnnotations):
    """Load things and stuff of ``CocoPanopticDataset`` as objects, as DETR learns them.

    mmdet's ``LoadPanopticAnnotations`` gives boxes to things only. Here every segment
    of the PNG becomes an entry of ``gt_bboxes``, ``gt_bboxes_labels``, ``gt_masks`` and
    ``gt_ignore_flags``. Segments without a pixel are skipped. Put it before random
    crops, as released: these clip the boxes.

    Args:
        num_things_classes: Number of classes with instances, which come first.
        with_crowd: Load crowds of things, too, as released.
        whole_pixels: Let boxes end behind their last pixels, as COCO's boxes do; as
            released they end at them, and segments of one pixel have no extent.
        **arguments: Those of mmdet's LoadAnnotations.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        with_crowd: bool = False,
        whole_pixels: bool = False,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.num_things_classes = num_things_classes
        self.with_crowd = with_crowd
        self.whole_pixels = whole_pixels

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add boxes, labels and masks of all segments to a sample.

        Samples of images without annotations pass.
        """
        path = results.get('seg_map_path')
        if path is None:
            return results
        ids = segment_ids(get(path, backend_args=self.backend_args))
        masks, labels = [], []
        for segment in results['segments_info']:
            mask = ids == segment['id']
            if mask.any() and (self.with_crowd or not self._is_crowd(segment)):
                masks.append(mask.astype(np.uint8))
                labels.append(segment['category'])
        boxes = [self._box(mask) for mask in masks]
        _, box_type = get_box_type(self.box_type)
        results['gt_bboxes'] = box_type(boxes, dtype=torch.float32)
        results['gt_bboxes_labels'] = np.array(labels, dtype=np.int64)
        results['gt_masks'] = BitmapMasks(masks, *ids.shape)
        results['gt_ignore_flags'] = np.zeros(len(masks), dtype=bool)
        return results

    def _is_crowd(self, segment: Mapping[str, Any]) -> bool:
        """Return whether mmdet's data set has marked things as no instance."""
        is_class_of_things = segment['category'] < self.num_things_classes
        return is_class_of_things and not segment['is_thing']

    def _box(self, mask: np.ndarray) -> list[int]:
        """Return the corners of the smallest box around a mask, (x1, y1, x2, y2)."""
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        end = int(self.whole_pixels)
        return [columns[0], rows[0], columns[-1] + end, rows[-1] + end]

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(num_things_classes={self.num_things_classes}, '
            f'with_crowd={self.with_crowd}, whole_pixels={self.whole_pixels})'
        )


def segment_ids(png: bytes) -> np.ndarray:
    """Decode the ids of segments, red + 256 * green + 256 ** 2 * blue, (H, W)."""
    colors = mmcv.imfrombytes(png, flag='color', channel_order='rgb').astype(np.int64)
    return colors @ np.array([1, 256, 256**2])
