"""mmengine's FLOP counter, by which get_flops of the libraries count."""

import re
from pathlib import Path

import pytest
import torch
from mmengine.analysis import FlopAnalyzer

from mmsparse import _flop_handles
from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model, read_config
from mmsparse.factory import create_backbone

CONFIGS = Path(__file__).parents[2] / 'configs'
FOCUS_DETR = CONFIGS / 'focus_detr/focus-detr_shunted-nano_1xb4-4e_digits.py'


def macs_by_operator(model, side):
    counter = FlopAnalyzer(model.eval(), torch.rand(1, 3, side, side))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return counter.by_operator()


@pytest.mark.parametrize(
    ('name', 'side'),
    [('dat-tiny', 96), ('biformer-nano', 512), ('shunted-nano', 224)],
)
def test_the_counter_of_mmengine_counts_norms_in_addition(name, side):
    backbone = create_backbone(name, out_indices=(2,))

    macs = macs_by_operator(backbone, side)

    norms = sum(count for operator, count in macs.items() if 'norm' in operator)
    assert norms > 0
    expected = measure(backbone, (side, side))[-1].macs
    assert sum(macs.values()) - norms == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('name', ['dat-nano', 'biformer-nano'])
def test_on_small_maps_it_counts_the_masked_attention_that_runs(name):
    backbone = create_backbone(name)

    total = sum(macs_by_operator(backbone, 224).values())

    assert 1 < total / measure(backbone, (224, 224))[-1].macs < 1.12


def test_handles_of_another_version_stay(monkeypatch):
    table = {'aten::baddbmm': 'theirs'}
    monkeypatch.setattr(
        _flop_handles.complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', table
    )

    _flop_handles.register_flop_handles()

    assert table.pop('aten::baddbmm') == 'theirs'
    assert list(table) == ['aten::scaled_dot_product_attention']


def test_get_flops_of_mmdet_counts_focus_detr(run_script):
    printed = run_script(
        'mmdet', 'analysis_tools/get_flops.py', FOCUS_DETR, '--num-images', '1'
    )

    (billions,) = re.findall(r'Flops: (\S+)G', printed)
    model = build_model(read_config(str(FOCUS_DETR)))
    expected = measure(model, (128, 128))[-1].macs / 1e9
    assert float(billions) == pytest.approx(expected, rel=0.03)


def test_get_flops_of_mmpretrain_counts_a_classifier(run_script, model_files):
    config, _ = model_files('mmpretrain')

    printed = run_script(
        'mmpretrain', 'analysis_tools/get_flops.py', config, '--shape', '64'
    )

    (millions,) = re.findall(r'Flops: (\S+)M', printed)
    model = build_model(read_config(str(config)))
    expected = measure(model, (64, 64))[-1].macs / 1e6
    assert float(millions) == pytest.approx(expected, rel=0.1)
