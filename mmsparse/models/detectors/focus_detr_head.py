"""The head of Focus-DETR: DINO's, with a loss of the foreground logits."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from mmdet.models.dense_heads import DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from mmsparse.models.detectors.dino_decoder import BOX_EPS
from mmsparse.models.detectors.foreground_loss import ForegroundLoss
from mmsparse.registry import MODELS


class ForegroundSupervision:
    """The foreground loss, to stand before a head of mmdet's detection transformers.

    Args:
        loss_foreground: Arguments of :class:`ForegroundLoss`.
        **arguments: Those of the head.
    """

    def __init__(
        self, loss_foreground: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        options = {} if loss_foreground is None else loss_foreground
        self.loss_foreground = ForegroundLoss(**options)

    def loss(
        self,
        foreground_logits: Tensor,
        level_sizes: tuple[tuple[int, int], ...],
        batch_data_samples: SampleList,
        **outputs: Any,
    ) -> dict[str, Tensor]:
        """Compute all losses.

        Args:
            foreground_logits: Of all tokens, (B, N).
            level_sizes: Height and width of every level.
            batch_data_samples: Pictures with their boxes.
            **outputs: What the head of mmdet needs.

        Returns:
            Its losses and ``loss_foreground``.
        """
        losses = super().loss(batch_data_samples=batch_data_samples, **outputs)
        boxes = [sample.gt_instances.bboxes for sample in batch_data_samples]
        losses['loss_foreground'] = self.loss_foreground(
            foreground_logits, boxes, level_sizes
        )
        return losses


@MODELS.register_module()
class FocusDETRHead(ForegroundSupervision, DINOHead):
    """DINO's head with a foreground loss.

    Arguments are those of :class:`ForegroundSupervision` and of mmdet's DINOHead.
    """

    def forward(
        self, hidden_states: Tensor, references: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Tell classes and boxes.

        Args:
            hidden_states: Queries of all layers, (layers, B, Q, C).
            references: Boxes before every layer, each (B, Q, 4).

        Returns:
            Class logits, (layers, B, Q, classes), and boxes (cx, cy, w, h) from 0 to 1,
            (layers, B, Q, 4).
        """
        # mmdet's head takes logits with an eps of 1e-5: of these it gets ours.
        references = [inverse_sigmoid(x, eps=BOX_EPS).sigmoid() for x in references]
        return super().forward(hidden_states, references)

    def _predict_by_feat_single(
        self,
        cls_score: Tensor,
        bbox_pred: Tensor,
        img_meta: dict,
        rescale: bool = True,
    ) -> InstanceData:
        """Let small pictures have fewer detections than ``max_per_img``."""
        queries, classes = cls_score.shape
        wanted = self.test_cfg.get('max_per_img', queries)
        missing = max(-(-wanted // classes) - queries, 0)
        results = super()._predict_by_feat_single(
            F.pad(cls_score, (0, 0, 0, missing), value=float('-inf')),
            F.pad(bbox_pred, (0, 0, 0, missing)),
            img_meta,
            rescale,
        )
        return results[: queries * classes]
