"""What detectors need instead of mmcv's CUDA operators, where these are not compiled.

They also know no bfloat16 (mmcv's issues 2878 and 3061). mmdet builds their modules by
class, not by a registry, so :func:`replace_operators` exchanges them in a model.
"""

from typing import Any, TypeVar

import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.losses import FocalLoss
from torch import Tensor, nn

from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.models.layers.multi_scale_deformable_attention import has_mmcv_cuda

Model = TypeVar('Model', bound=nn.Module)


def replace_operators(model: Model) -> Model:
    """Let a model run on any GPU, in bfloat16 too: deformable attention, focal loss.

    Modules are exchanged in place; weights and, in float32, outputs stay the same.
    What is compiled is still used. Deformable DETR, DINO and Mask2Former of mmdet need
    nothing more; non-maximum suppression and RoIAlign still need mmcv's operators.

    Args:
        model: For example a detector of mmdet.

    Returns:
        The model.
    """
    for module in model.modules():
        # Only methods change, not weights: exchange the classes. Subclasses stay.
        if type(module) is MultiScaleDeformableAttention and module.batch_first:
            module.__class__ = DeformableAttention
        elif type(module) is FocalLoss:
            module.__class__ = AnyDtypeFocalLoss
    return model


class AnyDtypeFocalLoss(FocalLoss):
    """mmdet's focal loss; mmcv's kernel computes it in float32 if it is compiled."""

    def forward(
        self, pred: Tensor, target: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        """Return the loss of logits, (n, classes), for labels, (n,) or one-hot."""
        pred = pred.float()
        if target.dim() < pred.dim() and not (pred.is_cuda and has_mmcv_cuda()):
            # mmdet computes one-hot labels by torch; that of the background is last.
            target = F.one_hot(target, pred.shape[1] + 1)[:, :-1]
        return super().forward(pred, target, *args, **options)
