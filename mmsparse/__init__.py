"""Sparse-attention vision models for OpenMMLab 2.x."""

from importlib import import_module
from typing import Any

__version__ = '0.1.0'
__all__ = ['create_backbone', 'create_model', 'list_models']


def __getattr__(name: str) -> Any:
    """Import the factory, and with it torch, when one of its functions is used."""
    if name in __all__:
        return getattr(import_module('mmsparse.factory'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
