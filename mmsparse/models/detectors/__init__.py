"""Detectors, each written as its difference to a detector of mmdet.

The only modules of mmsparse that need mmdet.
"""

from mmsparse.models.detectors.dc5_resnet import DC5ResNet
from mmsparse.models.detectors.detr_panoptic_fusion import DETRPanopticFusionHead
from mmsparse.models.detectors.detr_panoptic_head import (
    DETRPanopticHead,
    MaskNetwork,
    QueryAttentionMap,
)
from mmsparse.models.detectors.focus_detr import (
    FocusDETR,
    FocusDETRHead,
    FocusedTransformer,
)
from mmsparse.models.detectors.focus_encoder import (
    FocusEncoder,
    FocusEncoderLayer,
)
from mmsparse.models.detectors.foreground_loss import (
    ForegroundLoss,
    ForegroundSupervision,
)
from mmsparse.models.detectors.mmcv_operators import replace_operators
from mmsparse.models.detectors.panoptic_detr import PanopticDETR
from mmsparse.models.detectors.token_selector import ForegroundTokenSelector

__all__ = [
    'DC5ResNet',
    'DETRPanopticFusionHead',
    'DETRPanopticHead',
    'FocusDETR',
    'FocusDETRHead',
    'FocusEncoder',
    'FocusEncoderLayer',
    'FocusedTransformer',
    'ForegroundLoss',
    'ForegroundSupervision',
    'ForegroundTokenSelector',
    'MaskNetwork',
    'PanopticDETR',
    'QueryAttentionMap',
    'replace_operators',
]
