"""Metrics, and the hook that records their inputs."""

from mmsparse.evaluation.confusion_matrix import ConfusionMatrix
from mmsparse.evaluation.kept_token_recall import KeptTokenRecall
from mmsparse.evaluation.kept_tokens import (
    KeptTokens,
    KeptTokensHook,
    record_kept_tokens,
)

__all__ = [
    'ConfusionMatrix',
    'KeptTokenRecall',
    'KeptTokens',
    'KeptTokensHook',
    'record_kept_tokens',
]
