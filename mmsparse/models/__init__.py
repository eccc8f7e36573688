"""Models: backbones, attention layers and detectors; the last need mmdet."""

from importlib import import_module
from typing import Any

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
from mmsparse.registry import DETECTORS

__all__ = [
    'DAT',
    'BiFormer',
    'BiLevelRoutingAttention',
    'DeformableAttention2d',
    'FocusDETR',
    'FocusDETRHead',
    'FullAttention2d',
    'MultiScaleDeformableAttention2d',
    'NeighborhoodAttention2d',
    'ShuntedSelfAttention',
    'ShuntedTransformer',
    'WindowAttention2d',
]


def __getattr__(name: str) -> Any:
    """Import the detectors, and with them mmdet, when one is asked for."""
    if name in DETECTORS:
        return getattr(import_module('mmsparse.models.detectors'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
