"""Backbones and classifiers as models of Hugging Face transformers.

Importing this module registers them, so that ``AutoConfig``, ``AutoBackbone`` and
``AutoModelForImageClassification`` know the model type ``mmsparse``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModelForImageClassification,
    BackboneConfigMixin,
    BackboneMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import ones_, trunc_normal_, zeros_
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput

from mmsparse.factory import create_backbone, create_model
from mmsparse.factory.names import split_name
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import StagedBackbone


class MMSparseConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of a backbone or a classifier.

    Args:
        name: One of :func:`mmsparse.list_models`.
        out_features: Stages whose feature maps a backbone returns, ``stage1`` and
            following; the last if this and ``out_indices`` are None.
        out_indices: The same as indices from 0; there is no stem among them.
        backbone_arguments: Further arguments of the backbone, for example
            ``dict(drop_path_rate=0.1)``.
        **kwargs: Settings of every model, for example ``num_labels``.

    Raises:
        ValueError: The name or a stage is unknown.
    """

    model_type = 'mmsparse'

    def __init__(
        self,
        name: str = 'biformer-tiny',
        out_features: Sequence[str] | None = None,
        out_indices: Sequence[int] | None = None,
        backbone_arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.backbone_arguments = dict(backbone_arguments or {})
        family, arch = split_name(name)
        stages = BACKBONES[family].arch_settings[arch].num_stages
        self.stage_names = [f'stage{i + 1}' for i in range(stages)]
        self.set_output_features_output_indices(out_features, out_indices)


class MMSparseModel(PreTrainedModel):
    """Base class of the models, whose weights have the names of mmsparse."""

    config_class = MMSparseConfig
    base_model_prefix = 'model'  # of the backbone's weights in a classifier
    main_input_name = 'pixel_values'
    supports_gradient_checkpointing = True

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are checkpointed; set by ``gradient_checkpointing_enable``."""
        return any(backbone.with_cp for backbone in self._backbones())

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        for backbone in self._backbones():
            backbone.set_grad_checkpointing(enable)

    def _backbones(self) -> list[StagedBackbone]:
        return [x for x in self.modules() if isinstance(x, StagedBackbone)]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize norms of outputs that a file lacks."""
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            ones_(module.weight)
            zeros_(module.bias)
        if isinstance(module, nn.BatchNorm2d):
            zeros_(module.running_mean)
            ones_(module.running_var)
            zeros_(module.num_batches_tracked)


class MMSparseBackbone(BackboneMixin, MMSparseModel):
    """Backbone that returns the feature maps of some stages.

    Args:
        config: Configuration.

    Raises:
        ValueError: An argument in ``backbone_arguments`` is out of range.
    """

    def __init__(self, config: MMSparseConfig) -> None:
        super().__init__(config)
        with torch.device('cpu'):  # mmengine cannot initialize on the meta device
            self.backbone = create_backbone(
                config.name, out_indices=self.out_indices, **config.backbone_arguments
            )
        self.num_features = list(self.backbone.arch.embed_dims)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """Compute the feature maps.

        Args:
            pixel_values: Normalized images, (B, in_channels, H, W).
            **kwargs: Not used; what models pass to any backbone.

        Returns:
            ``feature_maps`` with one (B, C, H', W') for each of ``out_features``.
        """
        return BackboneOutput(feature_maps=self.backbone(pixel_values))


class MMSparseForImageClassification(MMSparseModel):
    """Classifier with ``config.num_labels`` classes.

    Args:
        config: Configuration.

    Raises:
        ValueError: An argument in ``backbone_arguments`` is out of range.
    """

    def __init__(self, config: MMSparseConfig) -> None:
        super().__init__(config)
        with torch.device('cpu'):  # as in MMSparseBackbone
            self.model = create_model(
                config.name, num_classes=config.num_labels, **config.backbone_arguments
            )
        self.post_init()

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Compute logits, and with labels the loss.

        Args:
            pixel_values: Normalized images, (B, in_channels, H, W).
            labels: Class of every image, (B,), or as ``config.problem_type`` demands.
            **kwargs: Options of the loss.

        Returns:
            ``logits``, (B, num_labels), and ``loss``, None without labels.
        """
        logits = self.model(pixel_values)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the linear layer, too, if a file has one for other classes."""
        super()._init_weights(module)
        if module is self.model.get_classifier():
            trunc_normal_(module.weight, std=0.02)
            zeros_(module.bias)


AutoConfig.register(MMSparseConfig.model_type, MMSparseConfig)
AutoBackbone.register(MMSparseConfig, MMSparseBackbone)
AutoModelForImageClassification.register(MMSparseConfig, MMSparseForImageClassification)
