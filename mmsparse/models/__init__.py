"""Models: backbones, attention layers and detectors; the detectors need mmdet."""

from typing import Any

from mmsparse.models import backbones, layers
from mmsparse.models.backbones import *  # noqa: F403
from mmsparse.models.layers import *  # noqa: F403
from mmsparse.registry import LAZY_MODELS, MODELS, import_lazy_model

__all__ = [*backbones.__all__, *layers.__all__, *LAZY_MODELS]


def __getattr__(name: str) -> Any:
    """Return a registered class; a detector imports mmdet."""
    if name in LAZY_MODELS:
        return import_lazy_model(name)
    if name in MODELS.module_dict:
        return MODELS.module_dict[name]
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
