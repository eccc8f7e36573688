"""Deformable DETR with the token selector and the encoder of Focus-DETR."""

from collections.abc import Callable
from typing import Any

from mmdet.models.dense_heads import DeformableDETRHead
from mmdet.models.detectors import DeformableDETR
from torch import Tensor, nn

from mmsparse.models.detectors import FocusedTransformer, ForegroundSupervision
from mmsparse.registry import MODELS


@MODELS.register_module()
class FocusDeformableDETR(FocusedTransformer, DeformableDETR):
    """Deformable DETR, plain, with refinement or in two stages, on foreground tokens.

    Arguments are those of :class:`mmsparse.models.detectors.FocusedTransformer` and of
    mmdet's DeformableDETR; the head is of type ``mmsparse.FocusDeformableDETRHead``.

    Raises:
        ValueError: An argument is out of range or does not fit another.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        if not self.as_two_stage:  # else they choose the queries, too
            self.memory_trans_fc = nn.Linear(self.embed_dims, self.embed_dims)
            self.memory_trans_norm = nn.LayerNorm(self.embed_dims)

    def init_weights(self) -> None:
        """Start as Deformable DETR and the selector do."""
        super().init_weights()
        nn.init.xavier_uniform_(self.memory_trans_fc.weight)

    @property
    def class_head(self) -> Callable[[Tensor], Tensor]:
        """The head of the first stage tells objects by its first class alone."""
        head = super().class_head
        return (lambda tokens: head(tokens)[..., :1]) if self.as_two_stage else head

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        proposals: Tensor,
        foreground_logits: Tensor,
        level_sizes: tuple[tuple[int, int], ...],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Prepare the queries as Deformable DETR does.

        Args:
            memory: What the encoder returned, (B, N, C).
            memory_mask: True for padding, (B, N).
            spatial_shapes: Height and width of every level, (levels, 2).
            proposals: Not used; Deformable DETR makes its own.
            foreground_logits: What the token selector returned, (B, N).
            level_sizes: ``spatial_shapes`` as numbers.

        Returns:
            What the decoder and what the head need.
        """
        decoder_inputs, head_inputs = super().pre_decoder(
            memory, memory_mask, spatial_shapes
        )
        if self.training:
            head_inputs.update(
                foreground_logits=foreground_logits, level_sizes=level_sizes
            )
        return decoder_inputs, head_inputs


@MODELS.register_module()
class FocusDeformableDETRHead(ForegroundSupervision, DeformableDETRHead):
    """Deformable DETR's head with a foreground loss.

    Arguments are those of :class:`mmsparse.models.detectors.ForegroundSupervision` and
    of mmdet's DeformableDETRHead.
    """
