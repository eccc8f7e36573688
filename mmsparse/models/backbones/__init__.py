"""Backbones, one module per family; new modules are discovered."""

from importlib import import_module
from pkgutil import iter_modules

from mmsparse.models.backbones.base import BACKBONES
from mmsparse.models.backbones.biformer import BiFormer, BiFormerArch
from mmsparse.models.backbones.dat import DAT, DATArch
from mmsparse.models.backbones.shunted_transformer import (
    ShuntedArch,
    ShuntedTransformer,
)
from mmsparse.models.backbones.staged_transformer import StagedTransformer

__all__ = [
    'BACKBONES',
    'DAT',
    'BiFormer',
    'BiFormerArch',
    'DATArch',
    'ShuntedArch',
    'ShuntedTransformer',
    'StagedTransformer',
]

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')
