"""Models: backbones, attention layers."""

from mmsparse.models.backbones import DAT, BiFormer, ShuntedTransformer
from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    DeformableAttention2d,
    FullAttention2d,
    MultiScaleDeformableAttention2d,
    NeighborhoodAttention2d,
    ShuntedSelfAttention,
    WindowAttention2d,
)

__all__ = [
    'DAT',
    'BiFormer',
    'BiLevelRoutingAttention',
    'DeformableAttention2d',
    'FullAttention2d',
    'MultiScaleDeformableAttention2d',
    'NeighborhoodAttention2d',
    'ShuntedSelfAttention',
    'ShuntedTransformer',
    'WindowAttention2d',
]
