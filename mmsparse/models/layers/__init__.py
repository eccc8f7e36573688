"""Attention layers, (B, C, H, W) to (B, C, H, W), and parts of transformer blocks.

Linear layers run on the (B, H, W, C) view, so that tensors in channels-last memory
format pass through without copies.
"""

from mmsparse.models.layers.bilevel_routing_attention import BiLevelRoutingAttention
from mmsparse.models.layers.deformable_attention import DeformableAttention2d
from mmsparse.models.layers.full_attention import FullAttention2d
from mmsparse.models.layers.multi_scale_deformable_attention import (
    MultiScaleDeformableAttention2d,
)
from mmsparse.models.layers.neighborhood_attention import NeighborhoodAttention2d
from mmsparse.models.layers.shunted_attention import ShuntedSelfAttention
from mmsparse.models.layers.window_attention import WindowAttention2d

__all__ = [
    'BiLevelRoutingAttention',
    'DeformableAttention2d',
    'FullAttention2d',
    'MultiScaleDeformableAttention2d',
    'NeighborhoodAttention2d',
    'ShuntedSelfAttention',
    'WindowAttention2d',
]
