from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.registry import DefaultScope

from mmsparse.apis import read_config

CONFIGS = Path(__file__).parents[2] / 'projects' / 'focus_deformable_detr' / 'configs'
VARIANTS = ('', '-refine', '-refine-twostage')
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


def build(variant, detector_type=None, **changes):
    path = CONFIGS / f'focus-deformable-detr{variant}_r50_16xb2-50e_coco.py'
    cfg = read_config(str(path))
    cfg.merge_from_dict(dict(model={**SMALL, **changes}))
    if detector_type is not None:
        cfg.model.type = detector_type
        cfg.model.bbox_head.type = 'DeformableDETRHead'
        for name in ('cascade', 'num_object_tokens', *changes):
            cfg.model.pop(name)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
    torch.nn.init.normal_(detector.level_embed)  # mmdet leaves it uninitialized
    return detector


def data(detector, training, boxes=(2, 3)):
    given = demo_mm_inputs(2, [[3, 96, 128], [3, 64, 120]], num_items=list(boxes))
    return detector.data_preprocessor(given, training)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('boxes', [(2, 3), (0, 1), (0, 0)], ids=str)
def test_every_parameter_gets_a_finite_gradient(variant, boxes):
    detector = build(variant).train()

    losses = detector(**data(detector, True, boxes), mode='loss')
    loss, _ = detector.parse_losses(losses)
    loss.backward()

    assert losses['loss_foreground'] > 0
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('variant', VARIANTS)
def test_predictions_are_finite(variant):
    detector = build(variant).eval()

    results = detector(**data(detector, False), mode='predict')

    for sample in results:
        assert sample.pred_instances.scores.isfinite().all()
        assert sample.pred_instances.bboxes.shape == (10, 4)


@pytest.mark.parametrize('variant', VARIANTS)
def test_all_tokens_without_object_attention_equal_deformable_detr(variant):
    everything = dict(
        keep_ratio=1.0,
        cascade=(1.0, 1.0),
        num_object_tokens=0,
        value_source='current',
    )
    focused = build(variant, **everything).eval()
    plain = build(variant, 'DeformableDETR', keep_ratio=1.0, value_source='current')
    missing, _ = plain.eval().load_state_dict(focused.state_dict(), strict=False)
    assert not missing
    given = data(plain, False)

    outs = [
        detector.forward_encoder(
            **detector.pre_transformer(
                detector.extract_feat(given['inputs']), given['data_samples']
            )[0]
        )
        for detector in (focused, plain)
    ]

    valid = ~outs[1]['memory_mask']
    torch.testing.assert_close(
        outs[0]['memory'][valid], outs[1]['memory'][valid], atol=1e-5, rtol=0
    )
