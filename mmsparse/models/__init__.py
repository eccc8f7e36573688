"""Models: backbones, attention layers and detectors; the last need mmdet."""

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
from mmsparse.registry import LAZY_MODELS, import_lazy_model

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
    """Import a detector, and mmdet, on first use."""
    if name in LAZY_MODELS:
        return import_lazy_model(name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
