"""Backbones and classifiers by name, without OpenMMLab's configs; see its functions."""

from mmsparse.factory.create import create_backbone, create_model
from mmsparse.factory.names import list_models

__all__ = ['create_backbone', 'create_model', 'list_models']
