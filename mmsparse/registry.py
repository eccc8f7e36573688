"""Registries of mmsparse in mmengine's tree, and the models that are imported lazily.

mmengine imports this module when a config names a type with the prefix ``mmsparse.``,
under any ``default_scope``. Importing it also lets mmengine read its own checkpoints
and safetensors, see :mod:`mmsparse.checkpoint.mmengine`, count the MACs of attention,
and find OneDL's fork of mmsegmentation, and lets mmdet and mmseg import mmcv without
compiled operators, see :mod:`mmsparse.mmcv_ext`.
"""

from collections.abc import Mapping
from importlib import import_module

from mmengine import registry
from mmengine.registry import Registry

from mmsparse._flop_handles import register_flop_handles
from mmsparse.checkpoint.mmengine import (
    allow_mmengine_checkpoints,
    register_safetensors,
)
from mmsparse.mmcv_ext import substitute_extension
from mmsparse.onedl import resolve_segmentation

# What needs mmdet, with the modules.
LAZY_MODELS = {
    'DC5ResNet': 'mmsparse.models.detectors',
    'DETRPanopticFusionHead': 'mmsparse.models.detectors',
    'DETRPanopticHead': 'mmsparse.models.detectors',
    'FocusDETR': 'mmsparse.models.detectors',
    'FocusDETRHead': 'mmsparse.models.detectors',
    'PanopticDETR': 'mmsparse.models.detectors',
    'SparseDETR': 'mmsparse.models.detectors',
    'SparseDETRHead': 'mmsparse.models.detectors',
}
LAZY_TRANSFORMS = {'LoadPanopticSegments': 'mmsparse.datasets.panoptic'}
LAZY_METRICS = {'PanopticQuality': 'mmsparse.evaluation.panoptic_quality'}


def import_lazy_model(name: str) -> type:
    """Import and return one of :data:`LAZY_MODELS`."""
    return getattr(import_module(LAZY_MODELS[name]), name)


class LazyRegistry(Registry):
    """Registry that imports some of its classes when they are first looked up."""

    lazy: Mapping[str, str] = {}  # names with their modules

    def get(self, key: str) -> type | None:
        """Return the class of this name, or None."""
        name = key.rpartition('.')[2]
        if name in self.lazy:
            import_module(self.lazy[name])  # which registers it
        return super().get(key)


def _child(
    parent: Registry, *locations: str, lazy: Mapping[str, str] | None = None
) -> Registry:
    """Build the registry below one of mmengine's, filled by modules of mmsparse."""
    locations = [f'mmsparse.{name}' for name in locations]
    child = LazyRegistry(
        parent.name, parent=parent, scope='mmsparse', locations=locations
    )
    child.lazy = lazy or {}
    return child


MODELS = _child(registry.MODELS, 'models', lazy=LAZY_MODELS)
MODEL_WRAPPERS = _child(registry.MODEL_WRAPPERS, 'engine.cpu_ddp')
HOOKS = _child(registry.HOOKS, 'engine.hooks', 'evaluation')
RUNNERS = _child(registry.RUNNERS, 'engine.runner')
STRATEGIES = _child(registry.STRATEGIES, 'engine.fsdp')
METRICS = _child(registry.METRICS, 'evaluation', lazy=LAZY_METRICS)
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    registry.OPTIM_WRAPPER_CONSTRUCTORS, 'engine.optim_wrapper_constructor'
)
TRANSFORMS = _child(registry.TRANSFORMS, 'datasets.transforms', lazy=LAZY_TRANSFORMS)

allow_mmengine_checkpoints()
register_safetensors()
register_flop_handles()
resolve_segmentation()
substitute_extension()
