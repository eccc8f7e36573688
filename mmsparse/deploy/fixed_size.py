"""Detection transformers for pictures of one size, as torch.export can trace them.

mmdet keeps the sizes of the maps in a tensor and reads them from it, number by number.
A graph has no such numbers. Here the sizes are numbers throughout.
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
from mmsparse.models.detectors.focus_detr import FocusDETR, FocusedTransformer


def with_fixed_sizes(detector: DeformableDETR) -> DeformableDETR:
    """Copy a detector so that sizes of maps are numbers.

    Args:
        detector: Deformable DETR of mmdet, or what is derived from it: DINO,
            Focus-DETR.

    Returns:
        A detector of the same weights and outputs that takes pictures without padding,
        without data samples and for evaluation only.

    Raises:
        ValueError: It is another detector.
    """
    if not isinstance(detector, DeformableDETR):
        raise ValueError(
            'The detector must be Deformable DETR, DINO or Focus-DETR; got '
            f'{type(detector).__name__}.'
        )
    detector = copy.deepcopy(detector)
    # Steps of the template change, and no weights: the class of the copy does.
    steps = FixedSizeDINO if isinstance(detector, DINO) else FixedSizes
    kind = type(detector)
    detector.__class__ = type(kind.__name__, (steps, kind), {})
    for module in detector.modules():
        if isinstance(module, MultiScaleDeformableAttention):
            module.__class__ = FixedSizeAttention
        elif isinstance(module, ShiftWindowMSA):
            module.__class__ = FixedSizeWindows
    return detector


class FixedSizes:
    """First step of a detection transformer, to stand before a detector of mmdet."""

    def pre_transformer(
        self,
        mlvl_feats: tuple[Tensor, ...],
        batch_data_samples: OptSampleList = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Flatten the maps of pictures without padding.

        Args:
            mlvl_feats: One (B, C, H, W) a level, fine to coarse.
            batch_data_samples: Not used.

        Returns:
            What the encoder and what the decoder need.
        """
        sizes = tuple(tuple(x.shape[-2:]) for x in mlvl_feats)
        tokens, positions = [], []
        for x, level in zip(mlvl_feats, self.level_embed, strict=True):
            encoding = self.positional_encoding(None, input=x)
            tokens.append(x.flatten(2).transpose(1, 2))
            positions.append(encoding.flatten(2).transpose(1, 2) + level)
        maps = dict(
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=mlvl_feats[0].new_ones(mlvl_feats[0].shape[0], len(sizes), 2),
        )
        encoder_inputs = dict(
            feat=torch.cat(tokens, dim=1),
            feat_mask=None,
            feat_pos=torch.cat(positions, dim=1),
            **maps,
        )
        if isinstance(self, FocusedTransformer):
            num_tokens = sum(height * width for height, width in sizes)
            encoder_inputs.update(
                level_sizes=sizes, num_valid=torch.tensor([num_tokens])
            )
        return encoder_inputs, dict(memory_mask=None, **maps)


class FixedSizeDINO(FixedSizes):
    """The same, and a decoder that does not ask for the number of pictures."""

    forward_decoder = FocusDETR.forward_decoder


class FixedSizeAttention(DeformableAttention):
    """Deformable attention that is told sizes as numbers, by mmdet's name for them."""

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: tuple[tuple[int, int], ...],
        **inputs: Any,
    ) -> Tensor:
        """Let tokens read the maps, see :class:`DeformableAttention`.

        Args:
            query: Tokens, (B, K, C).
            value: The tokens of all maps, (B, N, C).
            reference_points: (B, K, levels, 2 or 4).
            spatial_shapes: Height and width of every level.
            **inputs: The others that mmdet's layers and ours pass.

        Returns:
            The sum with the tokens, (B, K, C).
        """
        inputs['level_sizes'] = spatial_shapes
        shapes = query.new_tensor(spatial_shapes)
        return super().forward(query, value, reference_points, shapes, **inputs)


class FixedSizeWindows(ShiftWindowMSA):
    """Swin's attention that does not ask for the number of pictures."""

    def window_reverse(self, windows: Tensor, H: int, W: int) -> Tensor:
        """Put windows back in their places.

        Args:
            windows: Those of all pictures, (B * windows, side, side, C).
            H: Height of the map, a multiple of the side.
            W: Its width, likewise.

        Returns:
            (B, H, W, C).
        """
        side = self.window_size
        rows = windows.unflatten(0, (-1, H // side, W // side)).transpose(2, 3)
        return rows.flatten(3, 4).flatten(1, 2)
