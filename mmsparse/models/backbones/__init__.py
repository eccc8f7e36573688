"""Backbones, one module per family; a new module is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

from mmsparse.models.backbones.base import BACKBONES
from mmsparse.models.backbones.biformer import BiFormer
from mmsparse.models.backbones.dat import DAT
from mmsparse.models.backbones.shunted_transformer import ShuntedTransformer

__all__ = ['BACKBONES', 'DAT', 'BiFormer', 'ShuntedTransformer']

for _module in iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')
