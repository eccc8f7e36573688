"""Attention layers, and the building blocks that the backbones share.

Every layer maps (B, C, H, W) to (B, C, H, W). Linear projections of channels run on the
(B, H, W, C) view, so tensors in the channels-last memory format are not copied.
"""

from mmsparse.models.layers.bilevel_routing_attention import (
    BiLevelRoutingAttention,
    ConvMixer2d,
    FullAttention2d,
)
from mmsparse.models.layers.common import (
    ConvMlp2d,
    DepthwiseConv2d,
    DropPath,
    LayerNorm2d,
    LayerScale2d,
    Mlp2d,
)
from mmsparse.models.layers.deformable_attention import DeformableAttention2d
from mmsparse.models.layers.multi_scale_deformable_attention import (
    MultiScaleDeformableAttention2d,
)
from mmsparse.models.layers.neighborhood_attention import NeighborhoodAttention2d
from mmsparse.models.layers.shunted_attention import DetailMlp2d, ShuntedSelfAttention
from mmsparse.models.layers.window_attention import WindowAttention2d

__all__ = [
    'BiLevelRoutingAttention',
    'ConvMixer2d',
    'ConvMlp2d',
    'DeformableAttention2d',
    'DepthwiseConv2d',
    'DetailMlp2d',
    'DropPath',
    'FullAttention2d',
    'LayerNorm2d',
    'LayerScale2d',
    'Mlp2d',
    'MultiScaleDeformableAttention2d',
    'NeighborhoodAttention2d',
    'ShuntedSelfAttention',
    'WindowAttention2d',
]
