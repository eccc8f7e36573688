"""Detectors under autocast against single precision, with the same selection.

Tolerances: 0.2 % of the image for boxes, 2 % of the norm for all outputs, and a cosine
similarity of 0.95 for the gradient of each part of a detector: the gradient of a
location jumps where a rounded offset crosses the center of a cell.
"""

from functools import cache

import pytest
import torch
from tiny_detectors import (
    build_detector,
    build_host_detector,
    build_model,
    detector_config,
    make_images,
    sparse_config,
)
from torch.overrides import TorchFunctionMode

from mmsparse.models.detectors import replace_operators

DTYPES = (torch.bfloat16, torch.float16)
PARTS = ('encoder', 'decoder', 'bbox_head', 'panoptic_head')


def build_deformable_detr():
    config = detector_config(
        type='DeformableDETR', as_two_stage=False, with_box_refine=False
    )
    for name in ('cascade', 'num_object_tokens', 'dn_cfg'):
        del config[name]
    del config['bbox_head']['loss_foreground']
    config['bbox_head']['type'] = 'DeformableDETRHead'
    return build_model(config)


DETECTORS = {
    'Deformable DETR': build_deformable_detr,
    'DINO': lambda: build_host_detector('dino/dino-4scale_r50_8xb2-12e_coco.py'),
    'Mask2Former': lambda: build_host_detector(
        'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py'
    ),
    'DETR': lambda: build_host_detector('detr/detr_r50_8xb2-150e_coco.py'),
    'Focus-DETR': build_detector,
    'Sparse DETR': lambda: build_model(sparse_config()),
}


class SameSelection(TorchFunctionMode):
    """Let topk find in every further run what it found in the first."""

    def __init__(self):
        super().__init__()
        self.found, self.again = [], None

    def __enter__(self):
        if self.found:
            self.again = iter(self.found)
        return super().__enter__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk):
            return out
        if self.again is None:
            self.found.append(out.indices)
            return out
        indices = next(self.again)
        return torch.return_types.topk((args[0].gather(-1, indices), indices))


def tensors(outputs):
    """Return the tensors in nested outputs."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [x for output in outputs for x in tensors(output)]


@cache
def build(name):
    """Return a detector, its parameters that are compared, and the selection."""
    detector = replace_operators(DETECTORS[name]()).eval()
    named = detector.named_parameters()
    parameters = {k: x for k, x in named if any(part in k for part in PARTS)}
    return detector, parameters, SameSelection()


@cache
def run(name, dtype=None):
    """Return outputs and gradients, under autocast to a dtype; first without."""
    detector, parameters, selection = build(name)
    torch.manual_seed(1)
    inputs, samples = make_images([(64, 96)])
    with selection, torch.autocast('cpu', dtype, enabled=dtype is not None):
        outs = tensors(detector(inputs, samples, mode='tensor'))
    loss = sum((torch.randn(x.shape) * x).sum() for x in outs)
    found = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
    gradients = zip(parameters, found, strict=True)
    return outs, {k: x for k, x in gradients if x is not None}


def error(actual, expected):
    """Return the norm of the difference, relative to that of the expected values."""
    return (actual - expected).norm() / expected.norm()


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', [x for x in DETECTORS if x != 'Mask2Former'])
def test_boxes_are_in_single_precision(name, dtype):
    _, expected = run(name)[0]
    _, boxes = run(name, dtype)[0]

    assert boxes.shape[-1] == 4
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', DETECTORS)
def test_values_and_gradients_are_near_those_in_single_precision(name, dtype):
    expected, exact = run(name)
    outs, gradients = run(name, dtype)

    for pair in zip(outs, expected, strict=True):
        assert error(*pair) < 0.02
    assert gradients.keys() == exact.keys()
    for part in PARTS:
        names = [k for k in exact if part in k]
        if names:
            pair = [[x[k].flatten() for k in names] for x in (gradients, exact)]
            assert torch.cosine_similarity(*map(torch.cat, pair), dim=0) > 0.95
