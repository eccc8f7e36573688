"""Detectors; the only part that needs mmdet.

They are differences to mmdet's: a class here overrides steps of one there.
"""

from mmsparse.models.detectors.focus_detr import FocusDETR
from mmsparse.models.detectors.focus_detr_head import (
    FocusDETRHead,
    ForegroundSupervision,
)
from mmsparse.models.detectors.focus_encoder import (
    FocusEncoder,
    FocusEncoderLayer,
)
from mmsparse.models.detectors.focused_transformer import FocusedTransformer
from mmsparse.models.detectors.foreground_loss import ForegroundLoss
from mmsparse.models.detectors.token_selector import ForegroundTokenSelector

__all__ = [
    'FocusDETR',
    'FocusDETRHead',
    'FocusEncoder',
    'FocusEncoderLayer',
    'FocusedTransformer',
    'ForegroundLoss',
    'ForegroundSupervision',
    'ForegroundTokenSelector',
]
