"""Deformable DETR with the token selection and the encoder of Focus-DETR."""

from collections.abc import Callable

from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DeformableDETR
from torch import Tensor, nn

from mmsparse.models.detectors import FocusedTransformer, ForegroundSupervision
from mmsparse.registry import MODELS


@MODELS.register_module()
class FocusDeformableDETR(FocusedTransformer, DeformableDETR):
    """Deformable DETR on foreground tokens: plain, with box refinement or two-stage.

    Arguments are those of :class:`mmsparse.models.detectors.FocusedTransformer` and of
    mmdet's DeformableDETR. The head must be of type
    ``mmsparse.FocusDeformableDETRHead``.

    Raises:
        ValueError: An argument is out of range or inconsistent with another.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        if not self.as_two_stage:  # otherwise mmdet has them
            self.memory_trans_fc = nn.Linear(self.embed_dims, self.embed_dims)
            self.memory_trans_norm = nn.LayerNorm(self.embed_dims)

    def init_weights(self) -> None:
        """Initialize as Deformable DETR and the token selector do."""
        super().init_weights()
        nn.init.xavier_uniform_(self.memory_trans_fc.weight)

    @property
    def class_head(self) -> Callable[[Tensor], Tensor]:
        """Maps tokens to class logits; two-stage, only the first class is trained."""
        head = super().class_head
        return (lambda tokens: head(tokens)[..., :1]) if self.as_two_stage else head


@MODELS.register_module()
class FocusDeformableDETRHead(ForegroundSupervision, DeformableDETRHead):
    """Deformable DETR's head with a foreground loss.

    Arguments are those of :class:`mmsparse.models.detectors.ForegroundSupervision` and
    of mmdet's DeformableDETRHead.
    """
