"""What is computed without mmcv's compiled operators equals what they compute."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from mmcv.ops import RoIAlign, nms
from mmcv.ops.nms import batched_nms

from mmsparse.mmcv_ext import SUBSTITUTE, operators

HIDE_EXTENSION = """
import sys
from importlib.machinery import PathFinder

def find_spec(fullname, path=None, target=None, find=PathFinder.find_spec):
    return None if fullname == 'mmcv._ext' else find(fullname, path, target)

PathFinder.find_spec = find_spec
"""


@pytest.fixture
def substituted(monkeypatch):
    """Let functions of mmcv call the substitute from now on."""

    def substitute():
        for name in ('nms', 'roi_align'):
            monkeypatch.setattr(
                sys.modules[f'mmcv.ops.{name}'], 'ext_module', operators
            )

    return substitute


def random_boxes(count):
    corners = 40 * torch.rand(count, 2, 2)
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 60])
def test_nms_keeps_the_boxes_that_mmcv_keeps(count, offset, substituted):
    boxes, scores = random_boxes(count), torch.rand(count)
    options = dict(iou_threshold=0.3, offset=offset, score_threshold=0.1, max_num=20)
    expected = nms(boxes, scores, **options)

    substituted()

    torch.testing.assert_close(nms(boxes, scores, **options), expected)


def test_nms_is_by_class(substituted):
    arguments = random_boxes(50), torch.rand(50), torch.randint(3, (50,))
    settings = dict(type='nms', iou_threshold=0.5)
    expected = batched_nms(*arguments, settings)

    substituted()

    torch.testing.assert_close(batched_nms(*arguments, settings), expected)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_equals_mmcvs_in_value_and_gradient(
    aligned, sampling_ratio, substituted
):
    align = RoIAlign((3, 5), 0.25, sampling_ratio, aligned=aligned)
    features = torch.randn(2, 4, 9, 11, requires_grad=True)
    image = torch.tensor([0.0, 1, 1, 0, 1, 0])[:, None]
    rois = torch.cat([image, random_boxes(6)], dim=1)
    expected = align(features, rois)
    cotangent = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, features, cotangent)

    substituted()
    actual = align(features, rois)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, features, cotangent), (gradient,)
    )


def test_what_torchvision_lacks_is_refused(substituted):
    substituted()

    with pytest.raises(
        NotImplementedError, match=r'operator softnms .*`mmsparse doctor'
    ):
        sys.modules['mmcv.ops.nms'].soft_nms(random_boxes(3), torch.rand(3))
    with pytest.raises(NotImplementedError, match='pool_mode="max"'):
        RoIAlign(2, pool_mode='max')(torch.rand(1, 1, 4, 4), torch.rand(1, 5))


def test_a_compiled_extension_is_preferred():
    spec = importlib.util.find_spec('mmcv._ext')

    assert spec.origin != str(SUBSTITUTE)


def test_mmcvs_operators_import_without_the_extension():
    program = HIDE_EXTENSION + (
        'import mmsparse.registry\n'
        'import mmcv.ops\n'
        'from mmsparse.mmcv_ext import lacks_operators\n'
        'print(lacks_operators(), mmcv.ops.get_compiling_cuda_version())'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', program], capture_output=True, text=True
    )

    assert done.stdout == 'True not available\n', done.stderr
