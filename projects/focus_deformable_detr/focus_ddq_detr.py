"""DDQ-DETR with the token selection and the encoder of Focus-DETR."""

from collections.abc import Callable

from mmdet.models.dense_heads import DDQDETRHead
from mmdet.models.detectors import DDQDETR
from torch import Tensor

from mmsparse.models.detectors import FocusedTransformer, ForegroundSupervision
from mmsparse.registry import MODELS


@MODELS.register_module()
class FocusDDQDETR(FocusedTransformer, DDQDETR):
    """DDQ-DETR on foreground tokens; its queries are distinct among all tokens.

    Arguments are those of :class:`mmsparse.models.detectors.FocusedTransformer` and of
    mmdet's DDQDETR. The head must be of type ``mmsparse.FocusDDQDETRHead``.

    Raises:
        ValueError: An argument is out of range or inconsistent with another.
    """

    @property
    def class_head(self) -> Callable[[Tensor], Tensor]:
        """Maps tokens to class logits; the last head is that of dense queries."""
        return self.bbox_head.cls_branches[self.decoder.num_layers]


@MODELS.register_module()
class FocusDDQDETRHead(ForegroundSupervision, DDQDETRHead):
    """DDQ-DETR's head with a foreground loss.

    Arguments are those of :class:`mmsparse.models.detectors.ForegroundSupervision` and
    of mmdet's DDQDETRHead.
    """
