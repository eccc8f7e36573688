"""Models: backbones, attention layers."""

from mmsparse.models.backbones import BiFormer
from mmsparse.models.layers import BiLevelRoutingAttention

__all__ = ['BiFormer', 'BiLevelRoutingAttention']
