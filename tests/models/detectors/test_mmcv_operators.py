"""Detectors of mmdet without mmcv's CUDA operators: same losses, by other kernels."""

import copy

import pytest
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.losses import FocalLoss
from tiny_detectors import (
    build_detector,
    build_host_detector,
    build_model,
    detector_config,
    make_images,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmsparse.models.detectors import replace_operators
from mmsparse.models.layers import multi_scale_deformable_attention as layer
from mmsparse.ops import multi_scale

HOSTS = [
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'dino/dino-4scale_r50_8xb2-12e_coco.py',
]


def build_deformable_detr():
    config = detector_config(
        type='DeformableDETR',
        encoder=1,
        decoder=1,
        as_two_stage=False,
        with_box_refine=False,
    )
    for name in ('cascade', 'num_object_tokens', 'dn_cfg'):
        del config[name]
    del config['bbox_head']['loss_foreground']
    config['bbox_head']['type'] = 'DeformableDETRHead'
    return build_model(config)


def build_focus_detr():
    return build_detector(encoder=1, decoder=1)


def losses_and_gradients(detector, size=(32, 32), **autocast):
    torch.manual_seed(1)
    inputs, samples = make_images([size, (size[0] - 8, size[1])])
    with torch.autocast('cpu', **autocast or dict(enabled=False)):
        losses = detector.loss(inputs, samples)
        loss, named = detector.parse_losses(losses)
    parameters = {k: x for k, x in detector.named_parameters() if x.requires_grad}
    gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    found = zip(parameters, gradients, strict=True)
    return named, {name: x for name, x in found if x is not None}


@pytest.mark.parametrize('name', HOSTS)
def test_replaced_operators_change_neither_weights_nor_losses(name):
    detector = build_host_detector(name).train()
    replaced = replace_operators(copy.deepcopy(detector))

    assert not any(
        type(x) in (MultiScaleDeformableAttention, FocalLoss)
        for x in replaced.modules()
    )
    assert replaced.state_dict().keys() == detector.state_dict().keys()
    torch.testing.assert_close(
        losses_and_gradients(replaced),
        losses_and_gradients(detector),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize('build', [build_deformable_detr, build_focus_detr])
def test_the_triton_kernel_gives_the_same_losses_and_gradients(build, monkeypatch):
    pytest.importorskip('triton', minversion='3')  # has the interpreter
    detector, calls = replace_operators(build()).train(), []
    expected = losses_and_gradients(detector)

    def choose(value, points):
        calls.append(value.shape)
        return 'triton'

    monkeypatch.setattr(multi_scale, '_choose_backend', choose)
    actual = losses_and_gradients(detector)

    assert len(calls) == 2  # an encoder and a decoder layer
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('build', [build_deformable_detr, build_focus_detr])
def test_bfloat16_values_are_sampled_at_float32_locations(build, monkeypatch):
    detector, seen = replace_operators(build()).train(), set()
    attend = multi_scale._reference

    def record(value, points, weights, sizes):
        seen.add((value.dtype, points.dtype, weights.dtype))
        return attend(value, points, weights, sizes)

    monkeypatch.setattr(multi_scale, '_reference', record)
    losses, gradients = losses_and_gradients(detector, dtype=torch.bfloat16)

    assert seen == {(torch.bfloat16, torch.float32, torch.float32)}
    assert losses['loss'].isfinite()
    # oneDNN's gradients of the neck's smallest convolution are sometimes not finite.
    attention = [x for name, x in gradients.items() if 'coder' in name]
    assert attention and all(x.isfinite().all() for x in attention)


class Operators(TorchDispatchMode):
    """Record the operators that are called."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_gpu_without_mmcvs_operators_runs_the_kernel_and_is_not_waited_for(
    monkeypatch,
):
    pytest.importorskip('triton', minversion='3')
    monkeypatch.setattr(layer, 'has_mmcv_cuda', lambda: False)
    arguments = dict(num_heads=2, num_levels=2, num_points=2, batch_first=True)
    # Tensors without data: that of the sizes cannot be read.
    with FakeTensorMode(), torch.device('cuda'), Operators() as operators:
        attention = MultiScaleDeformableAttention(16, **arguments)
        out = replace_operators(attention)(
            torch.empty(1, 5, 16),
            value=torch.empty(1, 7, 16),
            reference_points=torch.empty(1, 5, 2, 2),
            spatial_shapes=torch.empty(2, 2, dtype=torch.long),
        )

    assert out.shape == (1, 5, 16)
    assert 'mmsparse.multi_scale.default' in operators.called


def test_the_focal_loss_takes_labels_and_half_precision():
    loss, logits = FocalLoss(loss_weight=2.0), torch.randn(6, 3)
    labels, weight = torch.tensor([0, 3, 2, 3, 1, 3]), torch.rand(6)
    expected = loss(logits, labels, weight, avg_factor=4)

    replaced = replace_operators(copy.deepcopy(loss))

    torch.testing.assert_close(replaced(logits, labels, weight, avg_factor=4), expected)
    half = replaced(logits.bfloat16(), labels, weight, avg_factor=4)
    torch.testing.assert_close(half, expected, atol=1e-2, rtol=1e-2)


def test_modules_with_another_layout_stay():
    attention = MultiScaleDeformableAttention(8, num_heads=2, batch_first=False)

    assert type(replace_operators(attention)) is MultiScaleDeformableAttention
