"""Panoptic and instance segmentation from DETR's classes, boxes and masks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.seg_heads.panoptic_fusion_heads import BasePanopticFusionHead
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmsparse.models.layers.common import check_choice
from mmsparse.registry import MODELS

MERGES = ('discard', 'union')
SETTINGS = dict(
    panoptic_on=True,
    instance_on=True,
    object_mask_thr=0.85,
    min_area=4,
    merge_stuff='discard',
    max_per_img=100,
)


class Segments(NamedTuple):
    """Segments of an image, numbered from 0."""

    ids: Tensor  # number of the segment of every pixel, 0 without any, (H, W)
    labels: Tensor  # class of every segment, (S,)


@MODELS.register_module()
class DETRPanopticFusionHead(BasePanopticFusionHead):
    """Turns classes, boxes and masks of queries into segments and instances.

    Paper: `End-to-End Object Detection with Transformers
    <https://arxiv.org/abs/2005.12872>`_, section 4.4. A pixel belongs to the kept query
    with the largest mask logit there; scores do not matter. Thing classes come first.

    Args:
        num_things_classes: Number of classes with instances.
        num_stuff_classes: Number of the other classes.
        test_cfg: Settings, all optional:

            - ``panoptic_on``, ``instance_on``: What is predicted; both by default.
            - ``object_mask_thr``: A query becomes a segment if its probability is above
              this, 0.85 by default.
            - ``min_area``: Segments of at most so many pixels are removed, 4 by
              default, and their pixels go to the next best segment.
            - ``merge_stuff``: What becomes of several segments of one stuff class:
              ``discard`` (default, as released) removes all but the first, so that the
              pixels of the others may go to any segment; ``union`` joins them.
            - ``max_per_img``: Number of instances, 100 by default.
        **arguments: Those of mmdet's BasePanopticFusionHead.

    Raises:
        ValueError: A setting is unknown or out of range.
    """

    def __init__(
        self,
        num_things_classes: int = 80,
        num_stuff_classes: int = 53,
        test_cfg: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        settings = {**SETTINGS, **(test_cfg or {})}
        if unknown := set(settings) - set(SETTINGS):
            raise ValueError(
                f'test_cfg must have settings out of {[*SETTINGS]}; got '
                f'{sorted(unknown)}.'
            )
        check_choice('test_cfg.merge_stuff', settings['merge_stuff'], MERGES)
        if not 0 <= settings['object_mask_thr'] <= 1:
            raise ValueError(
                f'test_cfg.object_mask_thr must be a probability from 0 to 1; got '
                f'{settings["object_mask_thr"]}.'
            )
        super().__init__(num_things_classes, num_stuff_classes, settings, **arguments)

    def loss(self) -> dict[str, Tensor]:
        """Return no losses: nothing is learned here."""
        return {}

    def select(self, logits: Tensor) -> Tensor:
        """Return which queries of an image need a mask, (Q,), by class logits."""
        needed = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        if self.test_cfg['panoptic_on']:
            needed[self._kept(logits)] = True
        if self.test_cfg['instance_on']:
            needed[self._best_things(logits)[0]] = True
        return needed

    def predict(
        self,
        mask_cls_results: Sequence[Tensor],
        mask_pred_results: Sequence[Tensor],
        batch_data_samples: SampleList,
        rescale: bool = False,
        bbox_results: Sequence[Tensor] | None = None,
    ) -> list[dict[str, Any]]:
        """Segment a batch.

        Args:
            mask_cls_results: Class logits of the selected queries of every image, the
                last of no object, (Q, classes + 1).
            mask_pred_results: Mask logits, (Q, h, w), over the padded image.
            batch_data_samples: Samples with the sizes of the images.
            rescale: Return masks and boxes at the original size of the image.
            bbox_results: Boxes (cx, cy, w, h) from 0 to 1, (Q, 4), of the instances;
                None for none.

        Returns:
            For each image ``pan_results`` with ``sem_seg``, (1, H, W): class +
            ``INSTANCE_OFFSET`` * instance, where stuff has instance 0 and pixels
            without a segment have class ``num_classes``; and ``ins_results`` with
            labels, scores, masks and boxes (x1, y1, x2, y2), best first.
        """
        results = []
        for i, sample in enumerate(batch_data_samples):
            found = (mask_cls_results[i], mask_pred_results[i])
            sizes = (sample.metainfo, rescale)
            result: dict[str, Any] = {}
            if self.test_cfg['panoptic_on']:
                segments = self.segment(*found, *sizes)
                result['pan_results'] = PixelData(sem_seg=self._sem_seg(segments))
            if self.test_cfg['instance_on']:
                boxes = None if bbox_results is None else bbox_results[i]
                result['ins_results'] = self._instances(*found, boxes, *sizes)
            results.append(result)
        return results

    def segment(
        self, logits: Tensor, masks: Tensor, meta: dict[str, Any], rescale: bool
    ) -> Segments:
        """Divide an image into segments.

        Args:
            logits: Class logits, (Q, classes + 1).
            masks: Mask logits over the padded image, (Q, h, w).
            meta: Sizes of the image.
            rescale: Whether the segments are to have its original size.

        Returns:
            Segments in the order of their queries, none that is empty.
        """
        size = meta['ori_shape'][:2] if rescale else meta['img_shape'][:2]
        kept = self._kept(logits)
        labels = logits[kept].argmax(-1)  # (K,)
        masks = _crop(_upsample(masks[kept], meta), meta)  # (K, H, W)
        firsts = self._first_of_class(labels)
        if self.test_cfg['merge_stuff'] == 'union':
            for i, first in enumerate(firsts.tolist()):
                masks[first] = torch.maximum(masks[first], masks[i])
            unique = firsts == torch.arange(len(firsts), device=firsts.device)
            masks, labels, firsts = masks[unique], labels[unique], None

        # Small segments go all at once, and their pixels to the best of the others.
        # The segments of a stuff class are merged the first time only, which leaves all
        # but its first segment without a pixel.
        while len(masks):
            ids = masks.argmax(0)
            ids = _resize_like_pillow(ids if firsts is None else firsts[ids], size)
            areas = torch.bincount(ids.flatten(), minlength=len(masks))
            large = areas > self.test_cfg['min_area']
            if large.all():
                return Segments(ids, labels)
            masks, labels, firsts = masks[large], labels[large], None
        return Segments(labels.new_zeros(tuple(size)), labels)

    def instance_masks(
        self, masks: Tensor, meta: dict[str, Any], rescale: bool
    ) -> Tensor:
        """Turn mask logits over the padded image, (K, h, w), into masks, (K, H, W)."""
        masks = _crop(_upsample(masks, meta).sigmoid() > 0.5, meta)
        if rescale:
            size = tuple(meta['ori_shape'][:2])
            masks = F.interpolate(masks[:, None].float(), size)[:, 0] > 0
        return masks

    def _kept(self, logits: Tensor) -> Tensor:
        """Return the indices of the queries that become segments."""
        scores, labels = logits.softmax(-1).max(-1)
        confident = scores > self.test_cfg['object_mask_thr']
        return (confident & (labels != self.num_classes)).nonzero()[:, 0]

    def _best_things(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return indices, scores and labels of the best instances, best first."""
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        things = (labels < self.num_things_classes).nonzero()[:, 0]
        count = min(self.test_cfg['max_per_img'], len(things))
        best, rows = scores[things].topk(count)
        return things[rows], best, labels[things[rows]]

    def _first_of_class(self, labels: Tensor) -> Tensor:
        """Return, for each segment, the first one of its class if it is stuff."""
        same = (labels[:, None] == labels) & (labels >= self.num_things_classes)
        same.fill_diagonal_(True)
        return (same.cumsum(-1) == 0).sum(-1)  # entries before the first True

    def _sem_seg(self, segments: Segments) -> Tensor:
        """Encode classes and instances of segments as mmdet does, (1, H, W)."""
        labels = segments.labels
        things = labels < self.num_things_classes
        values = labels + INSTANCE_OFFSET * things.cumsum(0) * things
        if not len(values):
            values = labels.new_tensor([self.num_classes])
        return values[segments.ids][None].int()

    def _instances(
        self,
        logits: Tensor,
        masks: Tensor,
        boxes: Tensor | None,
        meta: dict[str, Any],
        rescale: bool,
    ) -> InstanceData:
        rows, scores, labels = self._best_things(logits)
        found = InstanceData(
            labels=labels,
            scores=scores,
            masks=self.instance_masks(masks[rows], meta, rescale),
        )
        if boxes is not None:
            found.bboxes = _corners(boxes[rows], meta, rescale)
        return found


def _upsample(masks: Tensor, meta: dict[str, Any]) -> Tensor:
    """Enlarge mask logits, (K, h, w), to the padded image."""
    size = tuple(meta['batch_input_shape'])
    masks = masks[:, None].float()
    return F.interpolate(masks, size, mode='bilinear', align_corners=False)[:, 0]


def _crop(masks: Tensor, meta: dict[str, Any]) -> Tensor:
    """Remove the padding of masks, (K, H, W)."""
    height, width = meta['img_shape'][:2]
    return masks[:, :height, :width]


def _resize_like_pillow(ids: Tensor, size: Sequence[int]) -> Tensor:
    """Resize integers, (H, W), to another size as pillow's NEAREST does."""
    rows, columns = (
        torch.from_numpy(_nearest(old, new)).to(ids.device)
        for old, new in zip(ids.shape, size, strict=True)
    )
    return ids[rows[:, None], columns]


def _nearest(old: int, new: int) -> np.ndarray:
    """Return the index in ``old`` cells of each of ``new`` cells.

    pillow adds up its steps, which rounds otherwise than a multiplication.
    """
    steps = np.full(new, old / new)
    steps[0] /= 2
    return np.add.accumulate(steps).astype(np.int64).clip(max=old - 1)


def _corners(boxes: Tensor, meta: dict[str, Any], rescale: bool) -> Tensor:
    """Turn (cx, cy, w, h), from 0 to 1, into corners clipped to the image."""
    height, width = meta['img_shape'][:2]
    ends = boxes.new_tensor([width, height, width, height])
    corners = (bbox_cxcywh_to_xyxy(boxes) * ends).clamp(min=0).minimum(ends)
    if rescale:
        corners = corners / corners.new_tensor(meta['scale_factor']).repeat(2)
    return corners
