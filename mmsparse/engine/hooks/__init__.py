"""Hooks of MMEngine's runner."""

from mmsparse.engine.checkpoints import RepeatableRandomness
from mmsparse.engine.hooks.attention_vis import AttentionVisHook
from mmsparse.engine.hooks.stop_at_nan import StopAtNaN

__all__ = ['AttentionVisHook', 'RepeatableRandomness', 'StopAtNaN']
