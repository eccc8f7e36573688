"""Convert official checkpoints to state dicts of mmdet, mmseg and mmpretrain."""

from mmsparse.conversion.convert import convert_official

__all__ = ['convert_official']
