"""The nodes of mmsparse in MMEngine's registry tree.

MMEngine imports this module by itself when a config names a type with the
prefix ``mmsparse.``, whatever the host's default scope is.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

from mmsparse.compat import allow_mmengine_checkpoints

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmsparse', locations=['mmsparse.models']
)

allow_mmengine_checkpoints()
