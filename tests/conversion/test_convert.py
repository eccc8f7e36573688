import importlib
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope
from parity.biformer import official_tensor

from mmsparse.apis import build_model, read_config
from mmsparse.checkpoint import write_checkpoint
from mmsparse.conversion import biformer, convert_official
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import FAMILIES

CONFIGS = Path(__file__).parents[2] / 'configs' / 'biformer'
ARCHS = [
    (family, arch)
    for family in FAMILIES
    for arch in FAMILIES[family].backbone.arch_settings
]
# Entries of official state dicts, and how many of them mmsparse computes.
ENTRIES = {
    ('biformer', 'tiny'): (264, 0),
    ('biformer', 'small'): (518, 0),
    ('biformer', 'base'): (518, 0),
    ('biformer', 'stl'): (201, 0),
    ('biformer', 'stl-nchw'): (201, 0),
    ('dat', 'tiny'): (219, 10),
    ('dat', 'small'): (435, 16),
    ('dat', 'base'): (435, 16),
    ('dat', 'base-384'): (435, 16),
    ('dat', 'pp-tiny'): (589, 0),
    ('dat', 'pp-small'): (589, 0),
    ('dat', 'pp-base'): (589, 0),
    ('shunted', 'tiny'): (260, 0),
    ('shunted', 'small'): (596, 0),
    ('shunted', 'base'): (1010, 0),
}


def official_weights(family, arch='nano', device='cpu', classes=10, **settings):
    """Random weights with official keys, and with those of mmpretrain's model."""
    known = FAMILIES[family]
    with torch.device(device):
        backbone = known.backbone(arch, **settings)
        head = torch.nn.Linear(known.widths(arch)[-1], max(classes, 1))
    for tensor in (*backbone.state_dict().values(), *head.parameters()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.01, 0.1)
    layout = arch if arch in list(biformer.LAYOUTS) else 'biformer'
    expected = {f'backbone.{key}': x for key, x in backbone.state_dict().items()}
    if classes:
        expected |= {f'head.fc.{key}': x for key, x in head.state_dict().items()}
    official = {known.official(key, arch): tensor for key, tensor in expected.items()}
    if family == 'biformer':
        official = {
            known.official(key, arch): official_tensor(key, x, layout)
            for key, x in expected.items()
        }
    return official, expected


def with_options(weights, arch):
    """The weights with the options that determine DAT's formulation."""
    if FAMILIES['dat'].prefix(weights) is None or arch.startswith(('pp', 'nano')):
        return weights
    return {'model': weights, 'config': {'MODEL': {'DAT': {'stage_spec': 'LSLD'}}}}


def same(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(one[key], other[key]) for key in one
    )


def classifier(family):
    models = importlib.import_module('mmpretrain.registry').MODELS
    name = FAMILIES[family].backbone.__name__
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return models.build(
            dict(
                type='ImageClassifier',
                backbone=dict(type=f'mmsparse.{name}', arch='nano'),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', num_classes=10, in_channels=256),
            )
        )


@pytest.mark.parametrize('family', FAMILIES)
def test_a_classifier_becomes_that_of_mmpretrain(family):
    official, expected = official_weights(family)

    converted = convert_official(official)

    assert same(converted, expected)
    model = classifier(family).eval()
    model.load_state_dict(converted)
    x = torch.rand(1, 3, 64, 64)
    logits = torch.nn.functional.linear(
        model.backbone(x)[-1].mean((2, 3)),
        official[f'{FAMILIES[family].head}.weight'],
        official[f'{FAMILIES[family].head}.bias'],
    )
    torch.testing.assert_close(model(x, mode='tensor'), logits)


@pytest.mark.parametrize(('family', 'arch'), ARCHS, ids='-'.join)
def test_every_arch_is_recognized_from_keys_and_shapes(family, arch):
    official, expected = official_weights(family, arch, device='meta', classes=1000)

    found = convert(with_options(official, arch))

    assert (found.family, found.arch) == (family, arch)
    assert {key: x.shape for key, x in found.state_dict.items()} == {
        key: x.shape for key, x in expected.items()
    }
    if (family, arch) in ENTRIES:
        entries, computed = ENTRIES[family, arch]
        assert len(official) == entries - computed


@pytest.mark.parametrize('family', ['biformer', 'dat'])
@pytest.mark.parametrize('levels', [(0, 1, 2, 3), (1, 2, 3)], ids=str)
def test_a_dense_backbone_keeps_the_norms_of_its_outputs(family, levels):
    settings = dict(out_indices=levels, out_norm='layer')
    official, expected = official_weights(family, classes=0, **settings)

    converted = convert_official(official)

    assert same(converted, expected)
    assert 'backbone.out_norms.layer3.weight' in converted
    assert not any(key.startswith('head') for key in converted)


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize(
    'config',
    ['dino_biformer-nano_1xb4-4e_digits', 'fpn_biformer-nano_1xb8-1600i_digits'],
)
def test_a_classifier_starts_the_dense_tasks(family, config, tmp_path):
    official, _ = official_weights(family)
    write_checkpoint(tmp_path / 'a.pth', convert_official(official), {})
    cfg = read_config(CONFIGS / f'{config}.py')
    cfg.model.backbone = dict(
        type=f'mmsparse.{FAMILIES[family].backbone.__name__}',
        arch='nano',
        out_indices=cfg.model.backbone.out_indices,
        init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), prefix='backbone.'
        ),
        **({} if family == 'shunted' else {'out_norm': 'layer'}),
    )

    model = build_model(cfg)
    model.init_weights()

    expected = convert_official(official)
    loaded = {
        f'backbone.{key}': tensor
        for key, tensor in model.backbone.state_dict().items()
        if not key.startswith('out_norms.')
    }
    assert len(loaded) > 100
    assert same(loaded, {key: expected[key] for key in loaded})


@pytest.mark.parametrize(
    'wrap',
    [
        lambda weights: {'model': weights, 'epoch': 3},
        lambda weights: {'state_dict': weights, 'meta': {}},
        lambda weights: {'state_dict': {'model': weights}},
        lambda weights: {f'module.{key}': x for key, x in weights.items()},
        lambda weights: {f'backbone.{key}': x for key, x in weights.items()},
        lambda weights: {f'module.backbone.{key}': x for key, x in weights.items()},
        lambda weights: {
            **{f'encoder.{key}': x for key, x in weights.items()},
            'decoder.weight': torch.ones(1),
        },
        lambda weights: {**weights, 'best': 81.4},
        lambda weights: {
            'model': weights,
            'model_ema': {key: x + 1 for key, x in weights.items() if x.ndim},
            'optimizer': {'state': {0: {'exp_avg': torch.ones(3)}}},
        },
    ],
    ids=[
        *('model', 'state_dict', 'both', 'module', 'backbone', 'module.backbone'),
        *('encoder', 'number', 'ema and optimizer'),
    ],
)
@pytest.mark.parametrize('family', FAMILIES)
def test_wrappers_are_removed(family, wrap):
    official, expected = official_weights(family)

    assert same(convert_official(wrap(official)), expected)


def test_other_parts_of_a_detector_are_refused_or_dropped():
    official, expected = official_weights('shunted', classes=0)
    detector = {f'backbone.{key}': x for key, x in official.items()}
    detector['neck.lateral_convs.0.conv.weight'] = torch.ones(1)
    detector['bbox_head.fc.weight'] = torch.ones(1)

    with pytest.raises(
        ValueError, match=r'neck\.lateral_convs\.0\.conv\.weight, bbox_head\.fc\.weight'
    ):
        convert_official(detector)

    assert same(convert_official(detector, backbone_only=True), expected)


def test_the_head_of_a_classifier_can_be_dropped():
    official, expected = official_weights('shunted')

    backbone = convert_official(official, backbone_only=True)

    assert same(
        backbone, {k: x for k, x in expected.items() if k.startswith('backbone')}
    )


def test_buffers_that_mmsparse_computes_are_dropped():
    official, expected = official_weights('dat', 'tiny', device='meta')
    for block, block_type in enumerate('LS'):
        official[f'stages.0.attns.{block}.relative_position_index'] = torch.ones(49, 49)
        if block_type == 'S':
            official[f'stages.0.attns.{block}.attn_mask'] = torch.ones(64, 49, 49)

    assert convert_official(official, arch='tiny').keys() == expected.keys()


def test_an_arch_may_be_a_dict():
    arch = dict(base='nano', depths=(1, 1, 3, 1))
    official, expected = official_weights('biformer', arch)

    found = convert(official, arch=arch)

    assert found.arch == arch
    assert same(found.state_dict, expected)
    with pytest.raises(
        ValueError, match=r"arch 'pico', .*missing keys: stages\.0\.0\.mlp\.1\.dw"
    ):
        convert_official(official)


def test_one_by_one_convolutions_become_linear_maps():
    official, expected = official_weights('biformer', 'stl-nchw')

    assert official['stages.0.blocks.0.attn.qkv_linear.weight'].ndim == 4
    assert same(convert_official(official), expected)


@pytest.mark.parametrize(('mine', 'other'), [('stl', 'stl-nchw'), ('stl-nchw', 'stl')])
def test_the_two_stl_models_are_distinguished(mine, other):
    official, _ = official_weights('biformer', mine, device='meta')

    with pytest.raises(ValueError, match=rf"arch='{other}' does not fit.*'{mine}'"):
        convert_official(official, arch=other)


@pytest.mark.parametrize('arch', ['tiny', 'base-384'])
def test_dat_needs_the_arch_if_nothing_determines_the_formulation(arch):
    official, expected = official_weights('dat', arch, device='meta')

    with pytest.raises(ValueError, match=r"2022 or of 2023.*Give arch: one of \['base"):
        convert_official(official)

    assert convert_official(official, arch=arch).keys() == expected.keys()
    kept = {'model': official, 'config': {'stage_spec': 'LSLD', 'depths': 1}}
    assert convert(kept).arch == arch
    kept['config']['ksizes'] = [9, 7, 5, 3]
    with pytest.raises(ValueError, match='does not fit dat, arch .*the closest of all'):
        convert(kept)


def test_a_dat_of_2023_code_may_be_given_as_a_dict():
    arch = dict(base='tiny', formulation='v2023')
    official, expected = official_weights('dat', 'tiny', device='meta')

    assert convert_official(official, arch=arch).keys() == expected.keys()


def test_a_mismatch_lists_official_keys():
    official, _ = official_weights('biformer')
    del official['stages.0.1.attn.wo.weight'], official['downsample_layers.0.0.weight']
    official['extra.weight'] = torch.ones(1)
    official['norm.weight'] = torch.ones(3)
    official['head.weight'] = torch.ones(10, 3)

    with pytest.raises(ValueError, match='does not fit biformer') as info:
        convert_official(official)

    assert (
        "arch 'nano', the closest of all: missing keys: downsample_layers.0.0.weight, "
        'stages.0.1.attn.wo.weight; unexpected keys: extra.weight; size mismatch: '
        'norm.weight (3,) instead of (256,), head.weight (10, 3) instead of (10, 256).'
    ) in str(info.value)


def test_a_mismatch_lists_the_first_of_many_keys():
    official, _ = official_weights('shunted')
    official |= {f'extra.{i}': torch.ones(1) for i in range(100)}

    with pytest.raises(
        ValueError, match=r'unexpected keys: extra\.0, .* and 90 more\.$'
    ):
        convert_official(official)


def test_a_head_without_bias_is_an_error():
    official, _ = official_weights('shunted')
    del official['head.bias']

    with pytest.raises(ValueError, match=r'missing keys: head\.bias\.$'):
        convert_official(official, arch='nano')


@pytest.mark.parametrize(
    ('checkpoint', 'arguments', 'message'),
    [
        (
            {'model_ema': {'a': torch.ones(1)}},
            {},
            r"got \['model_ema'\] and no tensors",
        ),
        ({'model': 3}, {}, r"under 'state_dict' or 'model'; got \['model'\]"),
        ([torch.ones(1)], {}, r'must be a state dict.*got \[tensor'),
        (
            {'conv1.weight': torch.ones(1)},
            {},
            r"not those of detr_panoptic or .*; they begin with \['conv1.weight",
        ),
        (
            {'conv1.weight': torch.ones(1)},
            {'family': 'dat'},
            r"not those of dat; they begin with \['conv1.weight'",
        ),
        (
            {'conv1.weight': torch.ones(1)},
            {'family': 'swin'},
            r"family must be one of \['biformer', 'dat', .*'sparse_detr'\]; got 'swin'",
        ),
        (
            {'block1.0.attn.kv1.weight': torch.ones(1)},
            {'arch': 'huge'},
            r"arch must be one of \['base', 'nano', 'small', 'tiny'\]; got 'huge'",
        ),
        (
            {
                'stages.0.0.attn.lepe.weight': torch.ones(1),
                'stages.0.blocks.0.attn.lepe.weight': torch.ones(1),
            },
            {},
            "'stages.0.0.attn.lepe.weight' and 'stages.0.blocks.0.attn.lepe.weight'",
        ),
    ],
    ids=[
        *('ema only', 'no dict', 'list', 'unknown keys', 'other family'),
        *('unknown family', 'unknown arch', 'two for one'),
    ],
)
def test_other_checkpoints_and_arguments_are_an_error(checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        convert_official(checkpoint, **arguments)
