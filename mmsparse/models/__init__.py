"""Models: backbones, attention layers."""

from mmsparse.models.backbones import BiFormer
from mmsparse.models.layers import BiLevelRoutingAttention, FullAttention2d

__all__ = ['BiFormer', 'BiLevelRoutingAttention', 'FullAttention2d']
