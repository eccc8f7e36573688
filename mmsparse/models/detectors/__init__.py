"""Detectors, each written as its difference to a detector of mmdet.

The only modules of mmsparse that need mmdet.
"""

from mmsparse.models.detectors.attention_map_loss import (
    AttentionMapLoss,
    DecoderAttentionMap,
)
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
from mmsparse.models.detectors.selective_encoder import (
    SelectiveEncoder,
    SelectiveEncoderLayer,
)
from mmsparse.models.detectors.selective_transformer import SelectiveTransformer
from mmsparse.models.detectors.sparse_detr import SparseDETR, SparseDETRHead
from mmsparse.models.detectors.token_selector import (
    ForegroundTokenSelector,
    TokenSelector,
)

__all__ = [
    'AttentionMapLoss',
    'DC5ResNet',
    'DETRPanopticFusionHead',
    'DETRPanopticHead',
    'DecoderAttentionMap',
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
    'SelectiveEncoder',
    'SelectiveEncoderLayer',
    'SelectiveTransformer',
    'SparseDETR',
    'SparseDETRHead',
    'TokenSelector',
    'replace_operators',
]
