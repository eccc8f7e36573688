"""Backbones, one file a family."""

from mmsparse.models.backbones.biformer import BiFormer
from mmsparse.models.backbones.dat import DAT
from mmsparse.models.backbones.shunted_transformer import ShuntedTransformer

__all__ = ['DAT', 'BiFormer', 'ShuntedTransformer']
