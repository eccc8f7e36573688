"""DETR for panoptic segmentation: its box model, and a mask for each object.

The steps of mmdet's DETR, and what is added to them:

1. ``extract_feat``: the neck projects the last feature map of the backbone; the three
   others are passed on to the mask head.
2. ``forward_transformer``: DETR's; the encoder's output is passed on, too.
3. Box head: DETR's. Masks take no part in the matching.
4. Mask head (``DETRPanopticHead``): masks of the queries that are matched, in
   training, or that become segments or instances.
5. Fusion head (``DETRPanopticFusionHead``): segments and instances.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.detectors import DETR, MaskFormer
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsparse.registry import MODELS

Decoded = dict[str, Any]  # outputs of encoder and decoder


@MODELS.register_module()
class PanopticDETR(DETR):
    """DETR with a mask for each object, written as its difference to mmdet's DETR.

    Paper: `End-to-End Object Detection with Transformers
    <https://arxiv.org/abs/2005.12872>`_, section 4.4. Things and stuff are objects with
    boxes: train with ``mmsparse.LoadPanopticSegments``. The backbone returns the
    feature maps of all four stages. Detector and mask head are trained together, or,
    as released, the mask head after the detector.

    Args:
        mask_head: Config of ``mmsparse.DETRPanopticHead``.
        panoptic_fusion_head: Config of ``mmsparse.DETRPanopticFusionHead``.
        freeze_detector: Train the mask head alone; there are no losses of classes and
            boxes then.
        frozen_eval: Disable the dropout of a frozen detector. As released, it is active
            while the mask head is trained.
        test_cfg: Settings of the fusion head.
        **arguments: Those of mmdet's DETR; they are not modified.

    Raises:
        ValueError: A part is missing or does not fit another.
    """

    add_pred_to_datasample = MaskFormer.add_pred_to_datasample

    def __init__(
        self,
        mask_head: dict[str, Any],
        panoptic_fusion_head: dict[str, Any],
        freeze_detector: bool = False,
        frozen_eval: bool = False,
        test_cfg: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        if not arguments.get('bbox_head'):
            raise ValueError(
                'bbox_head must be the config of a DETRHead, since masks belong to '
                f'objects with boxes; got {arguments.get("bbox_head")}.'
            )
        # mmdet's constructors modify the dicts that they are given.
        super().__init__(**copy.deepcopy(dict(arguments, test_cfg=test_cfg)))
        self.mask_head = MMDET_MODELS.build(mask_head)
        self.panoptic_fusion_head = MMDET_MODELS.build(
            dict(panoptic_fusion_head, test_cfg=test_cfg)
        )
        self._check()
        self.freeze_detector, self.frozen_eval = freeze_detector, frozen_eval
        if freeze_detector:
            for part in self._detector():
                part.requires_grad_(False)

    def _check(self) -> None:
        if self.bbox_head.num_classes != self.num_classes:
            raise ValueError(
                'bbox_head.num_classes must be num_things_classes + num_stuff_classes '
                f'of panoptic_fusion_head, {self.num_classes}; got '
                f'{self.bbox_head.num_classes}.'
            )
        if self.mask_head.embed_dims != self.embed_dims:
            raise ValueError(
                'mask_head.embed_dims must be that of the transformer, '
                f'{self.embed_dims}; got {self.mask_head.embed_dims}.'
            )
        indices = getattr(self.backbone, 'out_indices', ())
        expected = len(self.mask_head.feat_channels) + 1
        if indices and len(indices) != expected:
            raise ValueError(
                f'backbone.out_indices must have {expected} stages: the transformer '
                'encodes the last feature map, and the mask head adds the others; got '
                f'{tuple(indices)}.'
            )

    @property
    def num_things_classes(self) -> int:
        """Number of classes with instances."""
        return self.panoptic_fusion_head.num_things_classes

    @property
    def num_stuff_classes(self) -> int:
        """Number of the other classes."""
        return self.panoptic_fusion_head.num_stuff_classes

    @property
    def num_classes(self) -> int:
        """Number of all classes."""
        return self.panoptic_fusion_head.num_classes

    @property
    def with_panoptic_fusion_head(self) -> bool:
        """Always True."""
        return True

    def _detector(self) -> Iterator[nn.Module]:
        """Yield all parts but the mask head."""
        return (x for name, x in self.named_children() if name != 'mask_head')

    def train(self, mode: bool = True) -> 'PanopticDETR':
        """Set training or evaluation mode, but for a detector in ``frozen_eval``."""
        super().train(mode)
        if mode and self.freeze_detector and self.frozen_eval:
            for part in self._detector():
                part.eval()
        return self

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of stages 1 to 3, and the projected one of stage 4."""
        *feats, last = self.backbone(batch_inputs)
        channels = tuple(x.shape[1] for x in feats)
        if channels != self.mask_head.feat_channels:
            raise ValueError(
                'mask_head.feat_channels must be the channels of all feature maps of '
                f'the backbone but the last, {channels}; got '
                f'{self.mask_head.feat_channels}.'
            )
        return (*feats, self.neck((last,))[-1])

    def forward_decoder(
        self, memory: Tensor, memory_mask: Tensor | None, **inputs: Any
    ) -> Decoded:
        """Run the decoder; pass on what the mask head needs of the encoder."""
        decoded = super().forward_decoder(
            memory=memory, memory_mask=memory_mask, **inputs
        )
        return dict(decoded, memory=memory, memory_mask=memory_mask)

    def loss(
        self, batch_inputs: Tensor, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Compute the losses of classes, boxes and masks.

        Args:
            batch_inputs: Images, (B, 3, H, W).
            batch_data_samples: Samples with boxes, labels and masks.

        Returns:
            The losses of mmdet's DETR, of all decoder layers, and ``loss_mask`` and
            ``loss_dice`` of the last.

        Raises:
            ValueError: The samples have no masks.
        """
        maps = self.extract_feat(batch_inputs)
        decoded = self.forward_transformer(maps, batch_data_samples)
        outputs = self.bbox_head(decoded['hidden_states'])
        truths = [sample.gt_instances for sample in batch_data_samples]
        metas = [sample.metainfo for sample in batch_data_samples]
        losses = {}
        if not self.freeze_detector:
            losses = self.bbox_head.loss_by_feat(*outputs, truths, metas)

        queries, targets = [], []
        for i, (truth, meta) in enumerate(zip(truths, metas, strict=True)):
            logits, boxes = (x[-1, i].detach() for x in outputs)
            matched, objects = match_queries(self.bbox_head, logits, boxes, truth, meta)
            queries.append(decoded['hidden_states'][-1, i, matched])
            targets.append(padded_masks(truth, objects, meta))
        num_objects = maps[-1].new_tensor([sum(map(len, truths))], dtype=torch.float32)
        num_objects = reduce_mean(num_objects).clamp(min=1).item()
        masks = self._masks(queries, decoded, maps)
        return losses | self.mask_head.loss(masks, targets, num_objects)

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Add ``pred_panoptic_seg`` and ``pred_instances`` to samples.

        Masks are computed for the queries that the fusion head selects.
        """
        maps = self.extract_feat(batch_inputs)
        decoded = self.forward_transformer(maps, batch_data_samples)
        states = decoded['hidden_states'][-1]  # (B, Q, C)
        logits, boxes = (x[0] for x in self.bbox_head(states[None]))
        selected = [self.panoptic_fusion_head.select(x) for x in logits]
        queries, logits, boxes = (
            [x[rows] for x, rows in zip(of_all, selected, strict=True)]
            for of_all in (states, logits, boxes)
        )
        results = self.panoptic_fusion_head.predict(
            logits,
            self._masks(queries, decoded, maps),
            batch_data_samples,
            rescale=rescale,
            bbox_results=boxes,
        )
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute class logits and boxes of all layers, and the masks of all queries.

        The shapes are (layers, B, Q, classes + 1), (layers, B, Q, 4) and, for every
        image, (Q, H, W).
        """
        maps = self.extract_feat(batch_inputs)
        decoded = self.forward_transformer(maps, batch_data_samples)
        states = decoded['hidden_states']
        masks = self._masks(list(states[-1]), decoded, maps)
        return *self.bbox_head(states), masks

    def _masks(
        self, queries: list[Tensor], decoded: Decoded, maps: tuple[Tensor, ...]
    ) -> list[Tensor]:
        """Compute the masks of queries, (Q, C) for each image."""
        *feats, last = maps
        size, mask = last.shape[-2:], decoded['memory_mask']
        memory = decoded['memory'].transpose(1, 2).unflatten(-1, size)  # (B, C, h, w)
        mask = None if mask is None else mask.unflatten(-1, size)
        return self.mask_head(queries, memory, mask, last, feats)


def match_queries(
    bbox_head: DETRHead,
    logits: Tensor,
    boxes: Tensor,
    truth: InstanceData,
    meta: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """Match the queries of an image with its objects, by classes and boxes.

    Args:
        bbox_head: Head with the assigner.
        logits: Class logits, (Q, classes + 1).
        boxes: (cx, cy, w, h) from 0 to 1, (Q, 4).
        truth: Labels and boxes (x1, y1, x2, y2) in pixels.
        meta: With ``img_shape``.

    Returns:
        Indices of the matched queries, ascending, and of their objects.
    """
    height, width = meta['img_shape'][:2]
    ends = boxes.new_tensor([width, height, width, height])
    predicted = InstanceData(scores=logits, bboxes=bbox_cxcywh_to_xyxy(boxes) * ends)
    numbers = bbox_head.assigner.assign(predicted, truth, meta).gt_inds
    matched = (numbers > 0).nonzero()[:, 0]
    return matched, numbers[matched] - 1


def padded_masks(truth: InstanceData, objects: Tensor, meta: dict[str, Any]) -> Tensor:
    """Return the masks of some objects, padded with zeros to the batch, (K, H, W)."""
    if 'masks' not in truth:
        raise ValueError(
            'gt_instances must have masks: load them by mmsparse.LoadPanopticSegments.'
        )
    masks = truth.masks[objects.cpu().numpy()].pad(meta['batch_input_shape'])
    return masks.to_tensor(torch.bool, objects.device)
