import copy

import pytest
import torch
from torch import nn

from mmsparse.models import BiFormer, BiLevelRoutingAttention
from mmsparse.models.backbones.biformer import BiFormerBlock
from mmsparse.models.layers import ConvMixer2d, FullAttention2d

NANO = BiFormer.arch_settings['nano']
STL = ('stl', 'stl-nchw')


def stl_micro(name):
    """An STL model in the size of nano."""
    sizes = {size: NANO[size] for size in ('embed_dims', 'depths', 'num_heads')}
    return {**BiFormer.arch_settings[name], **sizes}


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


@pytest.mark.parametrize('arch', ['stl', 'stl-nchw'])
def test_stl_has_the_published_number_of_parameters(arch):
    with torch.device('meta'):
        model = nn.ModuleList([BiFormer(arch), nn.Linear(768, 1000)])

    assert sum(parameter.numel() for parameter in model.parameters()) == 28_372_552


def test_the_two_stl_models_share_weights_but_not_the_last_stage():
    legacy, nchw = (
        BiFormer(stl_micro(name), regions_per_side=4, out_indices=(2, 3)).eval()
        for name in STL
    )
    nchw.load_state_dict(legacy.state_dict())
    x = torch.rand(1, 3, 64, 64)  # regions divide the maps: the routed stages agree

    (legacy3, legacy4), (nchw3, nchw4) = legacy(x), nchw(x)

    torch.testing.assert_close(legacy3, nchw3)
    assert not torch.allclose(legacy4, nchw4, atol=1e-3)


@pytest.mark.parametrize('arch', STL)
@pytest.mark.parametrize('size', [(32, 40), (63, 47)], ids=str)
def test_stl_takes_maps_smaller_than_its_regions(arch, size):
    backbone = BiFormer(stl_micro(arch), out_indices=(0, 1, 2, 3)).eval()

    outs = backbone(torch.rand(1, 3, *size))

    for i, out in enumerate(outs):
        assert out.shape[2:] == tuple(length // 2 ** (i + 2) for length in size)
        assert out.isfinite().all()


@pytest.mark.parametrize('name', ['nano', *STL])
def test_compiles_as_one_graph(name):
    arch = stl_micro(name) if name in STL else name
    backbone = BiFormer(arch, regions_per_side=4).eval()
    compiled = torch.compile(backbone, fullgraph=True, backend='eager')
    x = torch.rand(1, 3, 65, 93)

    torch.testing.assert_close(compiled(x), backbone(x))


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


def test_every_option_of_an_arch_trains():
    attn = dict(routing='projected', kv_pool=('avg', 2), qk_channels=16)
    arch = {
        **NANO,
        'topks': (4, 4, 0, 'all'),
        'attn_cfgs': (attn, attn, {}, dict(lepe_kernel=0)),
        'pos_kernel': 0,
        'mlp_kernel': 3,
        'layer_scale': 0.1,
        'post_norm': True,
        'downsample_norm': 'layer',
    }
    backbone = BiFormer(arch, regions_per_side=(4, 3, 2, 1))

    backbone(torch.rand(2, 3, 65, 93))[0].square().sum().backward()

    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert [block[0].attn.regions_per_side for block in backbone.stages[:2]] == [4, 3]
    assert not any(
        isinstance(m, nn.BatchNorm2d) for m in backbone.downsamples.modules()
    )


@pytest.mark.parametrize('post_norm', [False, True])
def test_a_block_is_the_sum_of_its_scaled_branches(post_norm):
    attn = FullAttention2d(16, num_heads=2)
    block = BiFormerBlock(attn, 16, 3, layer_scale=0.3, post_norm=post_norm)
    x = torch.rand(2, 16, 5, 7)
    y = block.pos_conv(x)
    if post_norm:
        y = block.norm1(y + 0.3 * attn(y))
        expected = block.norm2(y + 0.3 * block.mlp(y))
    else:
        y = y + 0.3 * attn(block.norm1(y))
        expected = y + 0.3 * block.mlp(block.norm2(y))

    torch.testing.assert_close(block(x), expected)


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
        (dict(arch='huge'), r"one of \['base', .*, 'stl-nchw', 'tiny'\]; got 'huge'"),
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
        (dict(regions_per_side=(7, 7)), r'one a stage, 4; got \(7, 7\)'),
        (
            dict(arch={**NANO, 'attn_cfgs': ({},)}),
            "the same number of stages; got .*'attn_cfgs': 1",
        ),
        (dict(arch={**NANO, 'downsampling': 'pool'}), "downsampling .*; got 'pool'"),
        (
            dict(arch={**NANO, 'downsample_norm': 'group'}),
            "downsample_norm must be one of .*; got 'group'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiFormer(**{'arch': 'nano', **arguments})
