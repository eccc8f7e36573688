"""Official checkpoints: reading them safely, and converting them to ours."""

from mmsparse.checkpoint.convert import convert_official
from mmsparse.checkpoint.files import read_checkpoint, write_checkpoint

__all__ = ['convert_official', 'read_checkpoint', 'write_checkpoint']
