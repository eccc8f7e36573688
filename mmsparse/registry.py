"""Registries of mmsparse in mmengine's tree, and the models that are imported lazily.

mmengine imports this module when a config names a type with the prefix ``mmsparse.``,
under any ``default_scope``. Importing it also lets mmengine read its own checkpoints
and safetensors, see :mod:`mmsparse.checkpoint.mmengine`.
"""

from importlib import import_module

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry

from mmsparse.checkpoint.mmengine import (
    allow_mmengine_checkpoints,
    register_safetensors,
)

# Models that need mmdet, with their modules.
LAZY_MODELS = {
    'FocusDETR': 'mmsparse.models.detectors',
    'FocusDETRHead': 'mmsparse.models.detectors',
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


MODELS = ModelRegistry(
    'model',
    parent=mmengine_registry.MODELS,
    scope='mmsparse',
    locations=['mmsparse.models'],
)
MODEL_WRAPPERS = Registry(
    'model_wrapper',
    parent=mmengine_registry.MODEL_WRAPPERS,
    scope='mmsparse',
    locations=['mmsparse.engine.cpu_ddp'],
)
HOOKS = Registry(
    'hook',
    parent=mmengine_registry.HOOKS,
    scope='mmsparse',
    locations=['mmsparse.engine.hooks', 'mmsparse.evaluation'],
)
METRICS = Registry(
    'metric',
    parent=mmengine_registry.METRICS,
    scope='mmsparse',
    locations=['mmsparse.evaluation'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=mmengine_registry.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmsparse',
    locations=['mmsparse.engine.optim_wrapper_constructor'],
)
TRANSFORMS = Registry(
    'transform',
    parent=mmengine_registry.TRANSFORMS,
    scope='mmsparse',
    locations=['mmsparse.datasets.transforms'],
)

allow_mmengine_checkpoints()
register_safetensors()
