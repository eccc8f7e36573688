"""What detectors need instead of mmcv's CUDA operators, and in half precision.

The operators know no bfloat16 (mmcv's issues 2878 and 3061), and autocast rounds
coordinates. mmdet builds its modules by class, not by a registry, so
:func:`replace_operators` exchanges them in a model.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch.nn.functional as F
from mmcv.cnn import Linear
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.dense_heads import DETRHead
from mmdet.models.losses import FocalLoss
from torch import Tensor, nn

from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.models.layers.multi_scale_deformable_attention import has_mmcv_cuda
from mmsparse.ops._precision import no_autocast

Model = TypeVar('Model', bound=nn.Module)


def replace_operators(model: Model) -> Model:
    """Let a model run on any GPU and in half precision.

    It exchanges deformable attention, focal loss, and the layers of DETRs that compute
    coordinates. Modules are exchanged in place; weights and, in float32, outputs stay
    the same. What is compiled is still used. Deformable DETR, DINO and Mask2Former of
    mmdet need nothing more.

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
        for layer in _coordinate_layers(module):
            if type(layer) in (Linear, nn.Linear):
                layer.__class__ = PreciseLinear
    return model


def _coordinate_layers(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of a module whose outputs become coordinates."""
    if isinstance(module, DETRHead):
        branches = ('reg_branches', 'aux_reg_branches')  # one for each decoder layer
        for branch in (x for name in branches for x in getattr(module, name, ())):
            yield branch[-1]
    for name in ('fc_reg', 'reference_points_fc'):  # DETR, Deformable DETR
        if hasattr(module, name):
            yield getattr(module, name)


class PreciseLinear(nn.Linear):
    """Linear layer in the dtype of its weights, also under autocast.

    mmdet adds coordinates to the outputs of such layers in place. Rounded to bfloat16,
    a coordinate is wrong by up to 1/512 of the image: 2.6 of 1333 pixels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), in the dtype of the weights."""
        with no_autocast(x):
            return super().forward(x.to(self.weight.dtype))


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
