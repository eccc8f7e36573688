from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.registry import DefaultScope

from mmsparse.apis import read_config

CONFIG = Path(__file__).parents[2] / 'projects' / 'focus_deformable_detr' / 'configs'
CONFIG /= 'focus-ddq-detr_r50_8xb2-12e_coco.py'
SMALL = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[16, 32, 64]),
    encoder=dict(num_layers=2),
    decoder=dict(num_layers=2),
    num_queries=12,
    cascade=(1.0, 0.4),
    num_object_tokens=9,
    test_cfg=dict(max_per_img=10),
)


def test_ddq_detr_trains_and_predicts_on_foreground_tokens():
    cfg = read_config(str(CONFIG))
    cfg.merge_from_dict(dict(model=SMALL))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
    torch.nn.init.normal_(detector.level_embed)  # mmdet leaves it uninitialized
    sizes = [[3, 96, 128], [3, 64, 120]]

    given = detector.data_preprocessor(demo_mm_inputs(2, sizes, num_items=[2, 3]), True)
    losses = detector.train()(**given, mode='loss')
    detector.parse_losses(losses)[0].backward()
    given = detector.data_preprocessor(demo_mm_inputs(2, sizes), False)
    results = detector.eval()(**given, mode='predict')

    assert losses['loss_foreground'] > 0
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    for sample in results:
        assert sample.pred_instances.scores.isfinite().all()
        assert sample.pred_instances.bboxes.shape == (10, 4)
