"""Image classifier: a backbone, global average pooling and a linear layer."""

from torch import Tensor, nn


class Classifier(nn.Module):
    """Image classifier that does not need mmpretrain.

    State-dict keys are those of mmpretrain's ``ImageClassifier`` with
    ``GlobalAveragePooling`` and ``LinearClsHead``: ``backbone.*`` and ``head.fc.*``.

    Args:
        backbone: Returns a tuple of feature maps; the last, (B, C, H, W), is pooled.
        channels: Channels of that feature map.
        num_classes: Number of classes.
    """

    def __init__(self, backbone: nn.Module, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.ModuleDict({'fc': nn.Linear(channels, num_classes)})

    def forward(self, x: Tensor) -> Tensor:
        """Images, (B, in_channels, H, W), to logits, (B, num_classes)."""
        return self.head['fc'](self.backbone(x)[-1].mean((2, 3)))
