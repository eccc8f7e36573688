import re
from pathlib import Path

import pytest
import torch
from mmdet.models.layers import coordinate_to_encoding
from mmengine.config.utils import MODULE2PACKAGE

from mmsparse import onedl
from mmsparse.conversion import dino

CONFIGS = Path(__file__).parents[1] / 'configs'


@pytest.mark.parametrize(
    ('installed', 'expected'),
    [
        ({'onedl-mmsegmentation'}, 'onedl-mmsegmentation'),
        ({'mmsegmentation'}, 'mmsegmentation'),
        ({'mmsegmentation', 'onedl-mmsegmentation'}, 'mmsegmentation'),
        (set(), 'mmsegmentation'),
    ],
)
def test_only_onedls_package_replaces_mmsegmentation(monkeypatch, installed, expected):
    monkeypatch.setattr(onedl, '_installed', installed.__contains__)
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')

    onedl.resolve_segmentation()

    assert MODULE2PACKAGE['mmseg'] == expected


def test_configs_find_onedls_package_before_a_base_of_mmseg():
    """mmengine reads bases in their order, and imports custom_imports only at last."""
    bases = {
        path: re.findall(r"'([^']*(?:::|/)[^']*\.py)'", found[1])
        for path in CONFIGS.rglob('*.py')
        if (
            found := re.search(
                r'^_base_ = (.*?)\n\n', path.read_text() + '\n\n', re.S | re.M
            )
        )
    }
    of_mmseg = {k: x for k, x in bases.items() if any('mmseg::' in base for base in x)}
    assert len(of_mmseg) >= 6
    assert [k for k, x in of_mmseg.items() if not x[0].endswith('onedl.py')] == []


@pytest.mark.parametrize('features', [2, 6, 128])
def test_a_widened_encoding_has_the_same_outputs(features):
    weight = torch.randn(5, 4 * features, dtype=torch.float64)
    boxes = torch.rand(2, 3, 4, dtype=torch.float64)

    wide = onedl.widen_box_encoding(weight)

    expected = coordinate_to_encoding(boxes, num_feats=features) @ weight.T
    actual = coordinate_to_encoding(boxes, num_feats=2 * features) @ wide.T
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def dino_of_openmmlab(channels=4):
    head = {'layers.0.weight': (channels, 2 * channels), 'layers.0.bias': (channels,)}
    shapes = {
        'backbone.conv1.weight': (8, 3, 7, 7),
        'memory_trans_norm.weight': (channels,),
        'query_embedding.weight': (9, channels),
        'dn_query_generator.label_embedding.weight': (3, channels),
        **{f'decoder.ref_point_head.{key}': shape for key, shape in head.items()},
    }
    return {key: torch.randn(shape) for key, shape in shapes.items()}


def test_weights_of_openmmlabs_dino_fit_onedls(monkeypatch):
    monkeypatch.setattr(dino, 'has_wide_dino', lambda: True)
    weights = dino_of_openmmlab()

    _, converted = dino.MMDET_DINO.convert(weights, backbone_only=False)

    wide = onedl.widen_box_encoding(weights[dino.BOX_ENCODING])
    assert converted.keys() == weights.keys()
    for key, tensor in {**weights, dino.BOX_ENCODING: wide}.items():
        torch.testing.assert_close(converted[key], tensor)


def test_weights_are_not_widened_twice(monkeypatch):
    monkeypatch.setattr(dino, 'has_wide_dino', lambda: True)
    _, converted = dino.MMDET_DINO.convert(dino_of_openmmlab(), backbone_only=False)
    shape = re.escape('ref_point_head.layers.0.weight (4, 16) instead of (4, 8)')
    with pytest.raises(ValueError, match=shape):
        dino.MMDET_DINO.convert(converted, backbone_only=False)


def test_other_detectors_are_not_taken_for_dino():
    weights = dino_of_openmmlab()
    assert dino.MMDET_DINO.prefix(weights) == ''
    for other in ('token_selector.alpha', 'text_feat_map.weight'):
        assert dino.MMDET_DINO.prefix({**weights, other: None}) is None


def test_a_backbone_is_not_taken_out_of_weights_without_one():
    with pytest.raises(ValueError, match='backbone_only=True needs a backbone'):
        dino.MMDET_DINO.convert(dino_of_openmmlab(), backbone_only=True)
