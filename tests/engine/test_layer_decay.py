"""Layer-wise learning-rate decay in mmdet, mmseg and mmpretrain."""

from pathlib import Path

import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError
from mmsparse.models import DAT, BiFormer, ShuntedTransformer

ROOT = Path(__file__).parents[2]
CONSTRUCTOR = 'mmsparse.BackboneOptimWrapperConstructor'
CONFIG = """
_base_ = '{root}/configs/{base}.py'
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.8),
)
"""
# Config, and a parameter of its head.
HOSTS = {
    'mmpretrain': ('biformer/biformer-nano_1xb32-9e_digits', 'head.fc.weight'),
    'mmdet': (
        'shunted_transformer/atss_shunted-nano_1xb8-6e_digits',
        'bbox_head.atss_cls.weight',
    ),
    'mmseg': (
        'dat/upernet_dat-nano_1xb8-1600i_digits',
        'decode_head.conv_seg.weight',
    ),
}


def build_optimizer(cfg, model=None):
    """Return the optimizer's groups by name of the parameter, and the model."""
    model = model or build_model(cfg)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {
        names[id(parameter)]: group
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    return groups, model


@pytest.mark.parametrize('host', HOSTS)
def test_learning_rates_fall_from_head_to_stem(host, tmp_path):
    base, head = HOSTS[host]
    path = tmp_path / 'decay.py'
    path.write_text(CONFIG.format(root=ROOT, base=base))
    cfg = read_config(str(path))

    groups, model = build_optimizer(cfg)

    depths = model.backbone.arch.depths
    lr, layers = cfg.optim_wrapper.optimizer.lr, sum(depths)
    stem = next(k for k in groups if k.startswith('backbone.downsamples.0.'))
    expected = {
        stem: layers + 1,
        'backbone.stages.0.0.mlp.fc1.weight': layers,
        'backbone.downsamples.2.': layers + 1 - sum(depths[:2]),
        'backbone.stages.2.0.mlp.fc1.weight': layers - sum(depths[:2]),
        f'backbone.stages.3.{depths[3] - 1}.mlp.fc2.weight': 1,
        'backbone.out_norms.': 0,
        'neck.': 0,
        head: 0,
    }
    for start, exponent in expected.items():
        found = {x['lr'] for name, x in groups.items() if name.startswith(start)}
        if start == head or found:
            assert list(found) == pytest.approx([lr * 0.8**exponent]), start
    assert {x.requires_grad for x in model.parameters()} == {True}
    assert len(groups) == len(list(model.parameters()))


def test_the_constructor_of_mmpretrain_gives_the_same_rates():
    cfg = read_config(str(ROOT / f'configs/{HOSTS["mmpretrain"][0]}.py'))
    rates = []
    for constructor in (CONSTRUCTOR, 'LearningRateDecayOptimWrapperConstructor'):
        cfg.optim_wrapper.constructor = constructor
        cfg.optim_wrapper.paramwise_cfg = dict(layer_decay_rate=0.7)
        groups, _ = build_optimizer(cfg)
        rates.append({name: group['lr'] for name, group in groups.items()})

    assert rates[0] == pytest.approx(rates[1])
    assert len(set(rates[0].values())) == sum((2, 2, 2, 1)) + 2


class Model(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = nn.Linear(4, 4)


def groups_of(model, lr=1.0, weight_decay=0.05, **paramwise_cfg):
    optimizer = dict(type='AdamW', weight_decay=weight_decay)
    if lr is not None:
        optimizer['lr'] = lr
    cfg = dict(
        constructor=CONSTRUCTOR, optimizer=optimizer, paramwise_cfg=paramwise_cfg
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group
        for group in build_optim_wrapper(model, cfg).optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('family', [DAT, BiFormer, ShuntedTransformer])
def test_decay_multiplies_what_paramwise_cfg_sets(family):
    model = Model(family('nano'))
    keys = {'backbone': dict(lr_mult=0.5, decay_mult=0.1), 'neck': dict(lr_mult=3.0)}

    plain = groups_of(model, custom_keys=keys)
    decayed = groups_of(model, custom_keys=keys, layer_decay_rate=0.9)

    layers = sum(model.backbone.arch.depths)
    for name, group in decayed.items():
        depth, _ = model.backbone.get_layer_depth(name, 'backbone.')
        scale = 0.9 ** (layers + 1 - depth)
        assert group['lr'] == pytest.approx(plain[name]['lr'] * scale), name
        assert group['weight_decay'] == plain[name]['weight_decay'], name
    assert decayed['neck.weight']['lr'] == 3.0
    exempt = {f'backbone.{name}' for name in model.backbone.no_weight_decay()}
    assert {x['weight_decay'] for x in map(decayed.get, exempt)} == {0.0}


def test_a_rate_of_one_changes_nothing():
    model = Model(BiFormer('nano'))

    groups = groups_of(model, layer_decay_rate=1)

    assert {group['lr'] for group in groups.values()} == {1.0}


def test_a_backbone_alone_is_decayed():
    groups = groups_of(BiFormer('nano', out_norm='layer'), layer_decay_rate=0.5)

    assert groups['out_norms.layer3.weight']['lr'] == 1
    assert groups['stages.3.0.norm1.weight']['lr'] == 0.5
    assert groups['downsamples.0.0.weight']['lr'] == 0.5**8


def test_a_backbone_inside_a_model_inside_a_model_is_decayed():
    model = nn.ModuleDict(dict(student=Model(DAT('nano')), head=nn.Linear(2, 2)))

    groups = groups_of(model, layer_decay_rate=0.5)

    assert groups['head.weight']['lr'] == groups['student.neck.weight']['lr'] == 1
    assert groups['student.backbone.stages.3.0.mlp.fc1.weight']['lr'] == 0.5


def test_backbones_of_mmpretrain_are_decayed_in_other_models():
    from mmpretrain.models import SwinTransformer

    arch = dict(embed_dims=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1])
    model = Model(SwinTransformer(arch, img_size=64, window_size=2))

    groups = groups_of(model, layer_decay_rate=0.5)

    assert groups['backbone.patch_embed.projection.weight']['lr'] == 0.5**5
    assert groups['backbone.stages.3.blocks.0.norm1.weight']['lr'] == 0.5
    assert groups['neck.weight']['lr'] == 1


def test_frozen_parameters_are_skipped():
    model = Model(BiFormer('nano', frozen_stages=2))

    groups = groups_of(model, layer_decay_rate=0.5)

    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert set(groups) == trained
    assert not any(name.startswith('backbone.stages.1') for name in groups)
    assert groups['backbone.stages.2.0.mlp.fc1.weight']['lr'] == 0.5**3


@pytest.mark.parametrize('rate', [0, -0.5, 1.5, '0.8', True, float('nan')], ids=str)
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(
        UsageError,
        match=r'optim_wrapper\.paramwise_cfg\.layer_decay_rate must be a number in '
        rf'\(0, 1\]; got {rate!r}\.',
    ):
        groups_of(Model(BiFormer('nano')), layer_decay_rate=rate)


def test_a_backbone_without_depths_is_refused():
    with pytest.raises(
        UsageError,
        match=r'layer_decay_rate needs a backbone with get_layer_depth\(\); Linear has '
        'none.*backbone of mmsparse or mmpretrain',
    ):
        groups_of(Model(nn.Linear(2, 2)), layer_decay_rate=0.8)


def test_the_name_that_other_constructors_have_is_refused():
    with pytest.raises(UsageError, match='decay_rate is of .*name it layer_decay_rate'):
        groups_of(Model(BiFormer('nano')), decay_rate=0.8, num_layers=6)


def test_a_learning_rate_is_needed():
    with pytest.raises(UsageError, match=r'needs optim_wrapper\.optimizer\.lr'):
        groups_of(Model(BiFormer('nano')), lr=None, layer_decay_rate=0.8)
