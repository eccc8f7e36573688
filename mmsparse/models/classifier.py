"""Image classifier: a backbone, global pooling and a linear layer."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.backbones.arch import DropRate, at_least, check_setting
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.models.backbones.feature_info import FeatureInfo
from mmsparse.models.layers.common import check_choice

POOLS = ('avg', 'max', '')
ClassCount = Annotated[int, at_least(0)]


class Classifier(nn.Module):
    """Image classifier without mmpretrain, with the methods of timm's models.

    State-dict keys are those of mmpretrain's ``ImageClassifier`` with
    ``GlobalAveragePooling`` and ``LinearClsHead``: ``backbone.*`` and ``head.fc.*``.

    Args:
        backbone: Backbone that returns the feature map of its last stage, as one of
            possibly several.
        num_classes: Number of classes; 0 for no linear layer.
        global_pool: ``avg`` or ``max``; '' for none, which needs ``num_classes=0``.
        drop_rate: Dropout rate before the linear layer.

    Raises:
        ValueError: ``global_pool`` is unknown, or '' with classes; ``num_classes`` or
            ``drop_rate`` is out of range.
    """

    def __init__(
        self,
        backbone: StagedBackbone,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = ClassifierHead(
            backbone.num_features, num_classes, global_pool, drop_rate
        )
        self.pretrained_cfg: dict[str, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Images, (B, in_channels, H, W), to logits, (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images, (B, in_channels, H, W), to the last feature map, (B, C, H', W')."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Compute logits from the last feature map.

        Args:
            x: Feature map, (B, C, H', W').
            pre_logits: Whether to leave out the linear layer.

        Returns:
            (B, num_classes), or (B, C) before the linear layer; with ``global_pool=''``
            the feature map itself.
        """
        return self.head(x, pre_logits)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Compute feature maps; see :meth:`StagedBackbone.forward_intermediates`."""
        return self.backbone.forward_intermediates(x, *args, **kwargs)

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without a linear layer."""
        return self.head.num_classes

    @property
    def num_features(self) -> int:
        """Channels of the last feature map."""
        return self.backbone.num_features

    @property
    def head_hidden_size(self) -> int:
        """Channels before the linear layer."""
        return self.backbone.num_features

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, strides and names of the stages."""
        backbone = self.backbone
        return FeatureInfo.of_stages(
            backbone.feature_info.channels(range(backbone.num_stages)),
            backbone.out_indices,
            prefix='backbone.',
        )

    @property
    def default_cfg(self) -> dict[str, Any]:
        """The former name of ``pretrained_cfg`` in timm."""
        return self.pretrained_cfg

    def get_classifier(self) -> nn.Module:
        """Return the linear layer; ``nn.Identity`` without classes."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None
    ) -> None:
        """Replace the linear layer by one with random weights.

        Args:
            num_classes: Number of classes; 0 for no linear layer.
            global_pool: See :class:`Classifier`; None keeps it.
        """
        self.head.reset(num_classes, global_pool)
        self.head.to(next(self.backbone.parameters()))  # its device and dtype

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what :meth:`forward_intermediates` does not need, as in timm.

        Args:
            indices: See :meth:`StagedBackbone.prune_intermediate_layers`.
            prune_norm: Whether to remove the norms of the outputs.
            prune_head: Whether to remove pooling and the linear layer.

        Returns:
            The stages in ``indices``, counted from 0.
        """
        kept = self.backbone.prune_intermediate_layers(indices, prune_norm)
        self.head.channels = self.backbone.num_features
        if prune_head:
            self.reset_classifier(0, '')
        return kept

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable activation checkpointing of the blocks."""
        self.backbone.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay."""
        return {f'backbone.{name}' for name in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group the parameters by depth.

        Args:
            coarse: Whether a group is a stage, not a block.

        Returns:
            See :meth:`StagedBackbone.group_matcher`.
        """
        return {
            group: _with_prefix(expressions)
            for group, expressions in self.backbone.group_matcher(coarse).items()
        }


class ClassifierHead(nn.Module):
    """Global pooling and a linear layer.

    Args:
        channels: C of the feature map.
        num_classes: See :class:`Classifier`.
        global_pool: See :class:`Classifier`.
        drop_rate: See :class:`Classifier`.
    """

    def __init__(
        self, channels: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        super().__init__()
        check_choice('global_pool', global_pool, POOLS)
        check_setting('drop_rate', drop_rate, DropRate)
        self.channels = channels
        self.drop_rate = drop_rate
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer; see :meth:`Classifier.reset_classifier`."""
        if global_pool is not None:
            check_choice('global_pool', global_pool, POOLS)
            self.global_pool = global_pool
        check_setting('num_classes', num_classes, ClassCount)
        if num_classes and not self.global_pool:
            raise ValueError(
                f"global_pool must be 'avg' or 'max' for num_classes={num_classes}; "
                "got ''. Set num_classes=0 for the feature map."
            )
        self.num_classes = num_classes
        self.fc = (
            nn.Linear(self.channels, num_classes) if num_classes else nn.Identity()
        )

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) to (B, num_classes); see :meth:`Classifier.forward_head`."""
        if self.global_pool == 'avg':
            x = x.mean((2, 3))
        elif self.global_pool == 'max':
            x = x.amax((2, 3))
        x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)


def _with_prefix(expressions: str | Sequence[tuple]) -> Any:
    if isinstance(expressions, str):
        return re.sub(r'^\^', r'^backbone\\.', expressions)
    return [(_with_prefix(pattern), depth) for pattern, depth in expressions]
