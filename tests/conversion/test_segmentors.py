"""Official segmentors, saved by mmseg 0.x."""

from functools import cache
from pathlib import Path

import pytest
import torch

from mmsparse.apis import build_model, read_config
from mmsparse.conversion import convert_official
from mmsparse.conversion.biformer import official_key as official_biformer_key
from mmsparse.conversion.convert import convert
from mmsparse.conversion.dat import official_key as official_dat_key

CONFIGS = Path(__file__).parents[2] / 'configs'
RELEASED = {  # config and arch
    'dat/fpn_dat-pp-tiny_8xb4-40k_ade20k-512x512': 'pp-tiny',
    'dat/fpn_dat-pp-small_8xb4-40k_ade20k-512x512': 'pp-small',
    'dat/fpn_dat-pp-base_8xb4-40k_ade20k-512x512': 'pp-base',
    'dat/upernet_dat-pp-tiny_8xb2-160k_ade20k-512x512': 'pp-tiny',
    'dat/upernet_dat-pp-small_8xb2-160k_ade20k-512x512': 'pp-small',
    'dat/upernet_dat-pp-base_8xb2-160k_ade20k-512x512': 'pp-base',
    'biformer/fpn_biformer-small_8xb4-80k_ade20k-512x512': 'small',
    'biformer/upernet_biformer-base_8xb4-160k_ade20k-512x512': 'base',
}
FPN, UPERNET = (
    'dat/fpn_dat-pp-tiny_8xb4-40k_ade20k-512x512',
    'dat/upernet_dat-pp-tiny_8xb2-160k_ade20k-512x512',
)


@cache
def segmentor(config):
    cfg = read_config(str(CONFIGS / f'{config}.py'))
    with torch.device('meta'):
        return build_model(cfg)


def official_weights(config):
    """Weights with official keys; the heads have those of mmseg."""
    official_key = official_dat_key if 'dat' in config else official_biformer_key
    return {
        'backbone.' + official_key(key.removeprefix('backbone.'))
        if key.startswith('backbone.')
        else key: tensor
        for key, tensor in segmentor(config).state_dict().items()
    }


@pytest.mark.parametrize('config', RELEASED)
@pytest.mark.parametrize('prefix', ['', 'module.'], ids=['plain', 'module'])
def test_a_segmentor_becomes_that_of_mmseg(config, prefix):
    official = {prefix + key: x for key, x in official_weights(config).items()}

    found = convert({'meta': {'iter': 9}, 'state_dict': official})

    assert found.arch == RELEASED[config]
    expected = segmentor(config).state_dict()
    assert {k: x.shape for k, x in found.state_dict.items()} == {
        k: x.shape for k, x in expected.items()
    }


def test_keys_are_those_of_the_releases():
    dat, biformer = (
        official_weights(config)
        for config in (FPN, 'biformer/upernet_biformer-base_8xb4-160k_ade20k-512x512')
    )

    assert {
        'backbone.stages.0.attns.1.rpe_table',
        'backbone.norms.3.norm.weight',
        'neck.lateral_convs.0.conv.bias',
        'decode_head.scale_heads.3.4.bn.num_batches_tracked',
        'decode_head.conv_seg.weight',
    } <= dat.keys()
    assert {
        'backbone.stages.2.17.attn.qkv.qkv.weight',
        'backbone.extra_norms.0.weight',
        'decode_head.psp_modules.3.1.conv.weight',
        'decode_head.fpn_bottleneck.bn.running_var',
        'auxiliary_head.convs.0.conv.weight',
    } <= biformer.keys()


def test_values_are_kept():
    official = {
        key: torch.rand(x.shape) if x.is_floating_point() else torch.tensor(7)
        for key, x in official_weights(FPN).items()
    }

    converted = convert_official(official)

    for key in ('decode_head.conv_seg.weight', 'neck.fpn_convs.2.conv.bias'):
        assert torch.equal(converted[key], official[key])
    assert torch.equal(
        converted['backbone.stages.0.0.norm1.bias'],
        official['backbone.stages.0.layer_norms.0.norm.bias'],
    )


def test_the_heads_can_be_dropped():
    converted = convert_official(official_weights(UPERNET), backbone_only=True)

    assert all(key.startswith('backbone.') for key in converted)
    assert 'backbone.out_norms.layer3.weight' in converted


def test_a_segmentor_may_have_no_auxiliary_head_and_other_widths():
    official = official_weights(UPERNET)
    kept = {k: x for k, x in official.items() if not k.startswith('auxiliary')}
    kept['decode_head.conv_seg.weight'] = torch.zeros(11, 512, 1, 1)
    kept['decode_head.conv_seg.bias'] = torch.zeros(11)

    converted = convert_official(kept)

    assert len(converted['decode_head.conv_seg.bias']) == 11
    assert not any(key.startswith('auxiliary') for key in converted)


@pytest.mark.parametrize(
    ('config', 'missing', 'added', 'message'),
    [
        (
            FPN,
            'decode_head.scale_heads.2.2.bn.bias',
            {'neck.lateral_convs.1.conv.weight': (256, 64, 1, 1)},
            r'missing keys: decode_head\.scale_heads\.2\.2\.bn\.bias; size mismatch: '
            r'neck\.lateral_convs\.1\.conv\.weight \(256, 64, 1, 1\) instead of '
            r'\(256, 128, 1, 1\)\. backbone_only',
        ),
        (
            UPERNET,
            'auxiliary_head.conv_seg.bias',
            {'depth_head.weight': (1,)},
            r'missing keys: auxiliary_head\.conv_seg\.bias; unexpected keys: '
            r'depth_head\.weight\.',
        ),
        (
            UPERNET,
            'decode_head.psp_modules.0.1.conv.weight',
            {},
            r'missing keys: decode_head\.psp_modules\.0\.1\.conv\.weight\.',
        ),
        (
            FPN,
            'decode_head.conv_seg.weight',
            {},
            r'missing keys: decode_head\.conv_seg',
        ),
    ],
    ids=['neck and head', 'auxiliary and unexpected', 'pooling', 'classes'],
)
def test_a_mismatch_of_the_heads_lists_keys(config, missing, added, message):
    official = official_weights(config)
    del official[missing]
    official |= {key: torch.zeros(shape) for key, shape in added.items()}

    with pytest.raises(ValueError, match=message):
        convert_official(official)


def test_another_head_is_an_error():
    official = {
        key: x for key, x in official_weights(FPN).items() if key.startswith('backbone')
    }
    official['decode_head.linear_fuse.conv.weight'] = torch.ones(1)

    with pytest.raises(
        ValueError,
        match=r'an FPNHead or a UPerHead; got decode_head\.linear_fuse\.conv\.weight',
    ):
        convert_official(official)
    assert convert_official(official, backbone_only=True)
