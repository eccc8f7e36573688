"""Attention layers, and the parts that the backbones share.

Every layer maps (B, C, H, W) to (B, C, H, W). Linear maps over channels run on the
(B, H, W, C) view, so tensors in channels-last storage pass through without copies.
"""

from mmsparse.models.layers.biformer_attention import (
    BiLevelRoutingAttention,
    ConvMixer2d,
    FullAttention2d,
)
from mmsparse.models.layers.common import (
    LayerNorm2d,
    Mlp2d,
    PatchConv2d,
    depthwise_conv,
)

__all__ = [
    'BiLevelRoutingAttention',
    'ConvMixer2d',
    'FullAttention2d',
    'LayerNorm2d',
    'Mlp2d',
    'PatchConv2d',
    'depthwise_conv',
]
