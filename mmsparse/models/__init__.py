"""Models: backbones, attention layers and detectors; the detectors need mmdet."""

from importlib import import_module
from typing import Any

from mmsparse.models import backbones, layers
from mmsparse.models.backbones import *  # noqa: F403
from mmsparse.models.layers import *  # noqa: F403
from mmsparse.registry import DETECTORS, MODELS

__all__ = [*backbones.__all__, *layers.__all__, *DETECTORS]


def __getattr__(name: str) -> Any:
    """Return a registered class; a detector imports mmdet."""
    if name in DETECTORS:
        import_module('mmsparse.models.detectors')
    if name in MODELS.module_dict:
        return MODELS.module_dict[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
