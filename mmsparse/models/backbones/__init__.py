"""Backbones, one file a family."""

from mmsparse.models.backbones.biformer import BiFormer

__all__ = ['BiFormer']
