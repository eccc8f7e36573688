"""Attention layers, (B, C, H, W) to (B, C, H, W), and parts of transformer blocks.

Linear layers run on the (B, H, W, C) view, so that tensors in channels-last memory
format pass through without copies.
"""

from mmsparse.models.layers.agent_attention import AgentAttention2d
from mmsparse.models.layers.axial_attention import AxialAttention2d
from mmsparse.models.layers.bilevel_routing_attention import BiLevelRoutingAttention
from mmsparse.models.layers.cross_shaped_attention import CrossShapedAttention2d
from mmsparse.models.layers.deformable_attention import DeformableAttention2d
from mmsparse.models.layers.full_attention import FullAttention2d
from mmsparse.models.layers.multi_scale_deformable_attention import (
    MultiScaleDeformableAttention2d,
)
from mmsparse.models.layers.neighborhood_attention import NeighborhoodAttention2d
from mmsparse.models.layers.shunted_attention import ShuntedSelfAttention
from mmsparse.models.layers.spatial_reduction_attention import (
    LinearSpatialReductionAttention2d,
    SpatialReductionAttention2d,
)
from mmsparse.models.layers.window_attention import WindowAttention2d

__all__ = [
    'AgentAttention2d',
    'AxialAttention2d',
    'BiLevelRoutingAttention',
    'CrossShapedAttention2d',
    'DeformableAttention2d',
    'FullAttention2d',
    'LinearSpatialReductionAttention2d',
    'MultiScaleDeformableAttention2d',
    'NeighborhoodAttention2d',
    'ShuntedSelfAttention',
    'SpatialReductionAttention2d',
    'WindowAttention2d',
]
