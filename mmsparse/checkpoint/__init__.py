"""Checkpoint files: read without running their code, checked, written and published."""

from mmsparse.checkpoint.files import read_checkpoint, write_checkpoint

__all__ = ['read_checkpoint', 'write_checkpoint']
