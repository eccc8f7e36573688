from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.registry import DefaultScope

from mmsparse.apis import read_config
from mmsparse.models import BiLevelRoutingAttention

CONFIG = 'configs/plugins/mask-rcnn_r50-bra_fpn_1x_coco.py'


def test_mask_rcnn_with_attention_plugins_takes_a_training_step():
    cfg = read_config(str(Path(__file__).parents[1] / CONFIG))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model).train()
    data = demo_mm_inputs(1, [[3, 64, 96]], num_items=[2], with_mask=True)
    data = model.data_preprocessor(data, training=True)

    losses = model(**data, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()

    layers = [m for m in model.modules() if isinstance(m, BiLevelRoutingAttention)]
    assert [layer.proj.in_features for layer in layers] == [1024] * 6 + [2048] * 3
    for layer in layers:
        for name, parameter in layer.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    assert torch.isfinite(loss)
