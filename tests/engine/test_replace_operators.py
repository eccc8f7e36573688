from types import SimpleNamespace

from mmcv.ops import MultiScaleDeformableAttention
from mmengine.config import Config
from tiny_detectors import detector_config
from torch import nn

from mmsparse.apis.model import build_model
from mmsparse.engine.hooks import ReplaceOperators
from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.models.detectors.mmcv_operators import AnyDtypeFocalLoss


def test_a_run_exchanges_the_operators_of_its_model():
    attention = MultiScaleDeformableAttention(8, num_heads=2, batch_first=True)
    model = nn.Sequential(attention)

    ReplaceOperators().before_run(SimpleNamespace(model=model))

    assert type(model[0]) is DeformableAttention


def test_a_built_model_has_the_operators_exchanged():
    settings = detector_config(encoder=1, decoder=1)

    detector = build_model(Config(dict(default_scope='mmdet', model=settings)))

    assert type(detector.bbox_head.loss_cls) is AnyDtypeFocalLoss
