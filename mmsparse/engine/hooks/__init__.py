"""Hooks of mmengine's runner."""

from mmsparse.engine.hooks.attention_vis import AttentionVisHook
from mmsparse.engine.hooks.explain_errors import ExplainErrors
from mmsparse.engine.hooks.name_sample_files import NameSampleFiles
from mmsparse.engine.hooks.repeatable_randomness import RepeatableRandomness
from mmsparse.engine.hooks.replace_operators import ReplaceOperators
from mmsparse.engine.hooks.safe_checkpoints import SafeCheckpoints
from mmsparse.engine.hooks.stop_at_nan import StopAtNaN

__all__ = [
    'AttentionVisHook',
    'ExplainErrors',
    'NameSampleFiles',
    'RepeatableRandomness',
    'ReplaceOperators',
    'SafeCheckpoints',
    'StopAtNaN',
]
