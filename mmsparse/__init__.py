"""Sparse-attention vision models for OpenMMLab 2.x."""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'
# Functions and their modules, which import torch when one is used.
_LAZY = {
    'create_backbone': 'mmsparse.factory',
    'create_model': 'mmsparse.factory',
    'list_models': 'mmsparse.factory',
    'register_timm': 'mmsparse.integrations.timm',
}
__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    """Import a function when it is used."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
