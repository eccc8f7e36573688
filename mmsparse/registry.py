"""Registries of mmsparse in mmengine's tree, and the models that are imported lazily.

mmengine imports this module when a config names a type with the prefix ``mmsparse.``,
under any ``default_scope``. Importing it also lets mmengine read its own checkpoints
and safetensors, see :mod:`mmsparse.checkpoint.mmengine`, and count the MACs of
attention.
"""

from importlib import import_module

from mmengine import registry
from mmengine.registry import Registry

from mmsparse._flop_handles import register_flop_handles
from mmsparse.checkpoint.mmengine import (
    allow_mmengine_checkpoints,
    register_safetensors,
)

# Models that need mmdet, with their modules.
LAZY_MODELS = {
    'FocusDETR': 'mmsparse.models.detectors',
    'FocusDETRHead': 'mmsparse.models.detectors',
    'SparseDETR': 'mmsparse.models.detectors',
    'SparseDETRHead': 'mmsparse.models.detectors',
}


def import_lazy_model(name: str) -> type:
    """Import and return one of :data:`LAZY_MODELS`."""
    return getattr(import_module(LAZY_MODELS[name]), name)


class ModelRegistry(Registry):
    """Registry that imports one of :data:`LAZY_MODELS` when it is first looked up."""

    def get(self, key: str) -> type | None:
        """Return the class of this name, or None."""
        name = key.rpartition('.')[2]
        if name in LAZY_MODELS:
            import_lazy_model(name)  # which registers it
        return super().get(key)


def _child(
    parent: Registry, *locations: str, cls: type[Registry] = Registry
) -> Registry:
    """Build the registry below one of mmengine's, filled by modules of mmsparse."""
    locations = [f'mmsparse.{name}' for name in locations]
    return cls(parent.name, parent=parent, scope='mmsparse', locations=locations)


MODELS = _child(registry.MODELS, 'models', cls=ModelRegistry)
MODEL_WRAPPERS = _child(registry.MODEL_WRAPPERS, 'engine.cpu_ddp')
HOOKS = _child(registry.HOOKS, 'engine.hooks', 'evaluation')
RUNNERS = _child(registry.RUNNERS, 'engine.runner')
METRICS = _child(registry.METRICS, 'evaluation')
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    registry.OPTIM_WRAPPER_CONSTRUCTORS, 'engine.optim_wrapper_constructor'
)
TRANSFORMS = _child(registry.TRANSFORMS, 'datasets.transforms')

allow_mmengine_checkpoints()
register_safetensors()
register_flop_handles()
