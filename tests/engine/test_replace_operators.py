import logging
from types import SimpleNamespace

import pytest
from mmcv.ops import MultiScaleDeformableAttention
from mmengine.config import Config
from tiny_detectors import detector_config
from torch import nn

from mmsparse.apis.model import build_model
from mmsparse.engine.hooks import ReplaceOperators, replace_operators
from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.models.detectors.mmcv_operators import AnyDtypeFocalLoss


def test_a_run_exchanges_the_operators_of_its_model():
    attention = MultiScaleDeformableAttention(8, num_heads=2, batch_first=True)
    model = nn.Sequential(attention)

    ReplaceOperators().before_run(SimpleNamespace(model=model))

    assert type(model[0]) is DeformableAttention


@pytest.mark.parametrize('lacking', [True, False])
def test_the_log_says_what_computes_without_mmcvs_operators(
    lacking, monkeypatch, caplog
):
    monkeypatch.setattr(replace_operators, 'lacks_operators', lambda: lacking)
    runner = SimpleNamespace(model=nn.Identity(), logger=logging.getLogger('run'))

    ReplaceOperators().before_run(runner)

    expected = [replace_operators.WITHOUT_OPERATORS] if lacking else []
    assert [record.message for record in caplog.records] == expected


def test_a_built_model_has_the_operators_exchanged():
    settings = detector_config(encoder=1, decoder=1)

    detector = build_model(Config(dict(default_scope='mmdet', model=settings)))

    assert type(detector.bbox_head.loss_cls) is AnyDtypeFocalLoss
