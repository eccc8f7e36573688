"""The nodes of mmsparse in MMEngine's registry tree.

MMEngine imports this module by itself when a config names a type with the
prefix ``mmsparse.``, whatever the host's default scope is.
"""

from importlib import import_module

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODEL_WRAPPERS as MMENGINE_MODEL_WRAPPERS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from mmsparse.checkpoint.mmengine import allow_mmengine_checkpoints, read_safetensors

DETECTORS = ('FocusDETR', 'FocusDETRHead')


class ModelRegistry(Registry):
    """Registry that imports our detectors, and with them mmdet, when one is named."""

    def get(self, key: str) -> type | None:
        """Look a type up.

        Args:
            key: Its name.

        Returns:
            The type, or None.

        Raises:
            ModuleNotFoundError: It is a detector, and mmdet is not installed.
        """
        if key.rpartition('.')[2] in DETECTORS:
            import_module('mmsparse.models.detectors')
        return super().get(key)


MODELS = ModelRegistry(
    'model', parent=MMENGINE_MODELS, scope='mmsparse', locations=['mmsparse.models']
)
MODEL_WRAPPERS = Registry(
    'model_wrapper',
    parent=MMENGINE_MODEL_WRAPPERS,
    scope='mmsparse',
    locations=['mmsparse.engine.cpu_ddp'],
)
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmsparse',
    locations=['mmsparse.engine.hooks', 'mmsparse.evaluation'],
)
METRICS = Registry(
    'metric',
    parent=MMENGINE_METRICS,
    scope='mmsparse',
    locations=['mmsparse.evaluation'],
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmsparse',
    locations=['mmsparse.engine.optim_wrapper_constructor'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmsparse',
    locations=['mmsparse.datasets.transforms'],
)

allow_mmengine_checkpoints()
read_safetensors()
