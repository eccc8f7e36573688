"""Detection transformers with static shapes, for images of one size without padding.

mmdet reads the sizes of feature maps from a tensor, which neither torch.export nor the
meta device can do. Here sizes are Python integers throughout.
"""

import copy
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.backbones.swin import ShiftWindowMSA
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.structures import OptSampleList
from torch import Tensor

from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.models.detectors.focus_detr import FocusDETR
from mmsparse.models.detectors.selective_transformer import SelectiveTransformer
from mmsparse.ops.pyramid import level_layout


def with_fixed_sizes(detector: DeformableDETR) -> DeformableDETR:
    """Copy a detector so that the sizes of feature maps are integers.

    The copy has the same weights and outputs, for inference on images without padding
    and data samples. Other detectors than Deformable DETR and its subclasses (DINO,
    Sparse DETR, Focus-DETR) raise ValueError.
    """
    if not isinstance(detector, DeformableDETR):
        raise ValueError(
            'detector must be Deformable DETR, DINO, Sparse DETR or Focus-DETR; got '
            f'{type(detector).__name__}.'
        )
    detector = copy.deepcopy(detector)
    # Only methods change, not weights: exchange the classes of the copied modules.
    mixin = FixedSizeDINO if isinstance(detector, DINO) else FixedSizes
    original = type(detector)
    detector.__class__ = type(original.__name__, (mixin, original), {})
    for module in detector.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.__class__ = FixedSizeAttention
        elif isinstance(module, ShiftWindowMSA):
            module.__class__ = FixedSizeWindows
    return detector


class FixedSizes:
    """Mixin before a detector of mmdet: the inputs of its encoder and decoder."""

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the inputs of encoder and decoder for images without padding."""
        sizes = tuple(tuple(x.shape[-2:]) for x in mlvl_feats)
        tokens, positions = [], []
        for x, level in zip(mlvl_feats, self.level_embed, strict=True):
            encoding = self.positional_encoding(None, input=x)
            tokens.append(x.flatten(2).transpose(1, 2))
            positions.append(encoding.flatten(2).transpose(1, 2) + level)
        shapes = dict(
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=mlvl_feats[0].new_ones(mlvl_feats[0].shape[0], len(sizes), 2),
        )
        encoder_inputs = dict(
            feat=torch.cat(tokens, dim=1),
            feat_mask=None,
            feat_pos=torch.cat(positions, dim=1),
            **shapes,
        )
        if isinstance(self, SelectiveTransformer):
            num_tokens = sum(height * width for height, width in sizes)
            encoder_inputs.update(
                level_sizes=sizes, num_valid=torch.tensor([num_tokens])
            )
        return encoder_inputs, dict(memory_mask=None, **shapes)


class FixedSizeDINO(FixedSizes):
    """Mixin before DINO: also a decoder that does not depend on the batch size."""

    forward_decoder = FocusDETR.forward_decoder


class FixedSizeAttention(DeformableAttention):
    """Deformable attention whose ``spatial_shapes`` are integers."""

    def forward(
        self, query: Tensor, spatial_shapes: tuple[tuple[int, int], ...], **inputs: Any
    ) -> Tensor:
        """Attend to values at sampling locations, (B, K, C) to (B, K, C)."""
        inputs['level_sizes'] = spatial_shapes
        shapes, _ = level_layout(spatial_shapes, query.device)
        return super().forward(query, spatial_shapes=shapes, **inputs)


class FixedSizeWindows(ShiftWindowMSA):
    """Swin's window attention without the batch size as an integer."""

    def window_reverse(self, windows: Tensor, H: int, W: int) -> Tensor:
        """Merge windows, (B * windows, side, side, C) to (B, H, W, C)."""
        side = self.window_size
        rows = windows.unflatten(0, (-1, H // side, W // side)).transpose(2, 3)
        return rows.flatten(3, 4).flatten(1, 2)
