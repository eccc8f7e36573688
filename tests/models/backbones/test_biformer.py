import copy

import pytest
import torch
from torch import nn

from mmsparse.models import BiFormer, BiLevelRoutingAttention
from mmsparse.models.layers import ConvMixer2d, FullAttention2d

NANO = BiFormer.arch_settings['nano']


@pytest.mark.parametrize(
    ('arch', 'published'),
    [('tiny', 12_628_736), ('small', 25_022_208), ('base', 56_034_432)],
)
def test_has_the_published_number_of_parameters(arch, published):
    with torch.device('meta'):
        backbone = BiFormer(arch)
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    norm = sum(parameter.numel() for parameter in backbone.out_norms.parameters())

    assert parameters - norm == published


def test_the_last_stage_attends_to_all_and_the_others_route():
    kinds = [type(stage[0].attn) for stage in BiFormer('nano').stages]

    assert kinds == [BiLevelRoutingAttention] * 3 + [FullAttention2d]


def test_a_stage_that_routes_to_no_region_has_convolutions():
    backbone = BiFormer({**NANO, 'topks': (0, 4, 16, 'all')})

    assert isinstance(backbone.stages[0][0].attn, ConvMixer2d)


def test_gelu_follows_every_downsampling_where_the_arch_says_so():
    last = [type(module[-1]) for module in BiFormer('nano').downsamples]

    assert last == [nn.GELU] * 4
    assert type(BiFormer('tiny').downsamples[0][-1]) is nn.BatchNorm2d


def test_the_number_of_regions_is_not_tied_to_the_weights():
    few, many = BiFormer('nano', regions_per_side=4), BiFormer('nano')

    many.load_state_dict(few.state_dict())

    assert many.stages[0][0].attn.regions_per_side == 7


def test_stochastic_depth_grows_linearly_over_all_blocks():
    backbone = BiFormer('nano', drop_path_rate=0.4)

    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage]

    assert rates == pytest.approx([0.4 * i / 6 for i in range(7)])


def test_autocast_stays_near_float32_where_no_route_can_change():
    every_region = {**NANO, 'topks': (16, 16, 16, 'all')}
    backbone = BiFormer(every_region, regions_per_side=4).eval()
    x = torch.rand(1, 3, 65, 93)

    with torch.autocast('cpu', torch.bfloat16):
        (rounded,) = backbone(x)

    (exact,) = backbone(x)
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_a_given_arch_is_left_as_it_was():
    arch = {**NANO, 'depths': [1, 1, 1, 1]}
    before = copy.deepcopy(arch)

    BiFormer(arch)

    assert arch == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), r"\['base', 'nano', 'small', 'tiny'\]; got 'huge'"),
        (
            dict(arch={**NANO, 'num_heads': (1, 3, 4, 8)}),
            r'embed_dims\[1\]=64 and num_heads=3',
        ),
        (dict(regions_per_side=3), r'topk .* regions, 9 .*; got 16'),
        (dict(regions_per_side=0), 'regions_per_side must be at least 1; got 0'),
        (
            dict(arch={**NANO, 'depths': (1, 1, 1)}),
            "same number of stages; got .*'depths': 3",
        ),
        (dict(arch={**NANO, 'heads': 3}), r"unknown: \['heads'\]"),
        (dict(arch=dict(depths=(1,))), r"missing: \['embed_dims', 'mlp_ratios'"),
        (dict(out_norm='group'), r"\['batch', 'layer'\]; got 'group'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiFormer(**{'arch': 'nano', **arguments})
