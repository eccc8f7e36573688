"""ResNet with a dilated last stage, the DC5 of DETR and Deformable DETR."""

from typing import Any

from mmdet.models.backbones import ResNet

from mmsparse.registry import MODELS

BOTTLENECK = 50  # the smallest depth whose blocks can be dilated


@MODELS.register_module()
class DC5ResNet(ResNet):
    """ResNet whose last stage has stride 1 and dilation 2.

    As in torchvision, with which the official models were trained, the 3x3 convolution
    of the stage's first block is not dilated. mmdet's ``dilations=(1, 1, 1, 2)`` also
    dilates that one: the same weights load and give other outputs.

    Args:
        depth: Number of layers, 50, 101 or 152.
        **arguments: Those of mmdet's ResNet but for ``strides`` and ``dilations``.

    Raises:
        ValueError: ``depth`` is below 50: those blocks cannot be dilated.
    """

    def __init__(self, depth: int, **arguments: Any) -> None:
        if depth < BOTTLENECK:
            raise ValueError(f'depth must be 50, 101 or 152; got {depth}.')
        dilated = dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
        super().__init__(depth, **dilated, **arguments)
        first = self.layer4[0].conv2
        first.dilation = first.padding = (1, 1)
