"""Metrics, and the hook that records their inputs."""

from mmsparse.evaluation.kept_token_recall import KeptTokenRecall
from mmsparse.evaluation.kept_tokens import (
    KeptTokens,
    KeptTokensHook,
    record_kept_tokens,
)

__all__ = ['KeptTokenRecall', 'KeptTokens', 'KeptTokensHook', 'record_kept_tokens']
