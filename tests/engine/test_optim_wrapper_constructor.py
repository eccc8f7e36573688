import pytest
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn

from mmsparse.models import DAT, BiFormer, ShuntedTransformer

CONSTRUCTOR = 'mmsparse.BackboneOptimWrapperConstructor'
SLOW_BACKBONE = dict(custom_keys={'backbone': dict(lr_mult=0.1)})
BACKBONES = {
    'DAT': lambda: DAT('nano'),
    'DAT, log bias': lambda: DAT(dict(base='nano', position_biases='log_cpb')),
    'DAT, depthwise bias': lambda: DAT(dict(base='nano', position_biases='depthwise')),
    'BiFormer': lambda: BiFormer('nano'),
    'ShuntedTransformer': lambda: ShuntedTransformer('nano'),
}


class Model(nn.Module):
    """A backbone and a head with a norm."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


def options(model, paramwise_cfg=None, weight_decay=0.05):
    """Build the optimizer; return name to (learning rate, weight decay)."""
    optimizer = dict(type='AdamW', lr=1.0, weight_decay=weight_decay)
    cfg = dict(constructor=CONSTRUCTOR, optimizer=optimizer)
    if paramwise_cfg is not None:
        cfg['paramwise_cfg'] = paramwise_cfg
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group['lr'], group['weight_decay'])
        for group in build_optim_wrapper(model, cfg).optimizer.param_groups
        for parameter in group['params']
    }


def is_exempt(model, name):
    """Whether a parameter is of a norm, or a position bias that is not decayed."""
    place, _, part = name.rpartition('.')
    module = model.get_submodule(place)
    if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
        return True
    if part == 'relative_position_bias_table':
        return 'Neighborhood' not in type(module).__name__
    return 'cpb_mlp' in name or ('attn.lepe' in name and isinstance(model, DAT))


@pytest.mark.parametrize('build', BACKBONES.values(), ids=BACKBONES)
def test_norms_and_position_biases_of_a_backbone_do_not_decay(build):
    model = Model(build())

    for name, found in options(model).items():
        own = name.removeprefix('backbone.')
        exempt = own != name and is_exempt(model.backbone, own)
        assert found == (1.0, 0.0 if exempt else 0.05), name


def test_learning_rates_and_decay_of_other_modules_are_those_of_paramwise_cfg():
    model = Model(BiFormer('nano'))

    found = options(model, dict(SLOW_BACKBONE, norm_decay_mult=0.5))

    assert found['backbone.stages.0.0.norm1.weight'] == (0.1, 0.0)
    assert found['backbone.stages.0.0.attn.qkv.weight'] == (0.1, 0.05)
    assert found['head.0.weight'] == (1.0, 0.05)
    assert found['head.1.weight'] == (1.0, 0.025)


def test_frozen_parameters_get_no_group_of_decay():
    backbone = BiFormer('nano', frozen_stages=0)
    model = Model(backbone)

    found = options(model, SLOW_BACKBONE)

    assert found['backbone.stages.0.0.norm1.bias'] == (0.1, 0.0)
    frozen = [name for name, x in model.named_parameters() if not x.requires_grad]
    assert frozen
    assert not set(frozen) & set(found)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg', 'mmpretrain'])
def test_the_constructor_is_found_under_every_default_scope(scope):
    with DefaultScope.overwrite_default_scope(scope):
        found = options(Model(BiFormer('nano')))

    assert found['backbone.stages.0.0.norm1.weight'] == (1.0, 0.0)


def test_names_of_absent_parameters_are_ignored_as_timm_has_them():
    backbone = nn.Linear(2, 2)
    backbone.no_weight_decay = lambda: {'bias', 'dist_token'}

    found = options(Model(backbone))

    assert found['backbone.bias'] == (1.0, 0.0)
    assert found['backbone.weight'] == (1.0, 0.05)
