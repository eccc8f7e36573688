"""Checkpoint files: read without running their code, check, compare, write, publish."""

from mmsparse.checkpoint.files import read_checkpoint, write_checkpoint

__all__ = ['read_checkpoint', 'write_checkpoint']
