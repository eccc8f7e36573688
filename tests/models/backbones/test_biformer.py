import pytest
import torch
from torch import nn

from mmsparse.models import BiFormer, BiLevelRoutingAttention
from mmsparse.models.backbones.biformer import ConvMixer2d
from mmsparse.models.layers import FullAttention2d

STL = ('stl', 'stl-nchw')


def stl_micro(name):
    """An STL model with the sizes of nano."""
    nano = BiFormer.arch_settings['nano']
    sizes = ('embed_dims', 'depths', 'num_heads')
    return dict(base=name, **{size: getattr(nano, size) for size in sizes})


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
def test_stl_takes_feature_maps_smaller_than_its_regions(arch, size):
    backbone = BiFormer(stl_micro(arch), out_indices=(0, 1, 2, 3)).eval()

    outs = backbone(torch.rand(1, 3, *size))

    for i, out in enumerate(outs):
        assert out.shape[2:] == tuple(length // 2 ** (i + 2) for length in size)
        assert out.isfinite().all()


@pytest.mark.parametrize('name', ['nano', *STL])
def test_compiles_as_one_graph(name):
    arch = stl_micro(name) if name in STL else dict(base=name)
    backbone = BiFormer(arch | dict(depths=1), regions_per_side=4).eval()
    compiled = torch.compile(backbone, fullgraph=True, backend='eager')
    x = torch.rand(1, 3, 65, 93)

    torch.testing.assert_close(compiled(x), backbone(x))


def test_the_last_stage_has_full_attention_and_the_others_route():
    types = [type(stage[0].attn) for stage in BiFormer('nano').stages]

    assert types == [BiLevelRoutingAttention] * 3 + [FullAttention2d]


def test_a_conv_stage_has_convolutions_in_place_of_attention():
    backbone = BiFormer(
        dict(base='nano', block_types=('conv', 'routing', 'full', 'full'))
    )

    assert isinstance(backbone.stages[0][0].attn, ConvMixer2d)


def test_downsample_act_is_a_gelu_after_every_downsampling():
    last = [type(module[-1]) for module in BiFormer('nano').downsamples]

    assert last == [nn.GELU] * 4
    assert type(BiFormer('tiny').downsamples[0][-1]) is nn.BatchNorm2d


def test_every_option_of_an_arch_trains():
    attn = dict(routing='projected', kv_pool=('avg', 2), qk_channels=16)
    arch = dict(
        base='nano',
        block_types=('routing', 'routing', 'conv', 'full'),
        topks=4,
        attn_cfgs=(attn, attn, {}, dict(lepe_kernel=0)),
        pos_kernels=0,
        mlp_kernels=3,
        layer_scales=0.1,
        post_norm=True,
        downsample_norm='layer',
    )
    backbone = BiFormer(arch, regions_per_side=(4, 3, 2, 1))

    backbone(torch.rand(2, 3, 65, 93))[0].square().sum().backward()

    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert [block[0].attn.regions_per_side for block in backbone.stages[:2]] == [4, 3]
    assert not any(
        isinstance(m, nn.BatchNorm2d) for m in backbone.downsamples.modules()
    )


def test_weights_do_not_depend_on_the_number_of_regions():
    few, many = BiFormer('nano', regions_per_side=4), BiFormer('nano')

    many.load_state_dict(few.state_dict())

    assert many.stages[0][0].attn.regions_per_side == 7


def test_autocast_stays_near_float32_where_no_route_can_change():
    every_region = dict(base='nano', topks=16)
    backbone = BiFormer(every_region, regions_per_side=4).eval()
    x = torch.rand(1, 3, 65, 93)

    with torch.autocast('cpu', torch.bfloat16):
        (rounded,) = backbone(x)

    (exact,) = backbone(x)
    assert (rounded.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), r"one of \['base', .*, 'stl-nchw', 'tiny'\]; got 'huge'"),
        (
            dict(arch=dict(base='nano', num_heads=(1, 3, 4, 8))),
            r'stages\[1\]: .* in_channels=64 and num_heads=3',
        ),
        (dict(regions_per_side=3), r'stages\[2\]: topk .* regions, 9 .*; got 16'),
        (dict(regions_per_side=0), 'regions_per_side must be an integer of at least 1'),
        (
            dict(arch=dict(base='nano', depths=(1, 1, 1))),
            "same number of stages; got .*'depths': 3",
        ),
        (dict(arch=dict(base='nano', heads=3)), r"unknown: \['heads'\]"),
        (
            dict(arch=dict(depths=(1,))),
            r"missing: \['block_types', 'embed_dims', 'num_heads'\]",
        ),
        (
            dict(arch=dict(base='nano', topks=None)),
            r'stages\[0\]: topks must be an int',
        ),
        (dict(out_norm='group'), r"\['batch', 'layer'\]; got 'group'"),
        (dict(regions_per_side=(7, 7)), r'one per stage, 4; got \(7, 7\)'),
        (
            dict(arch=dict(base='nano', attn_cfgs=({},))),
            "the same number of stages; got .*'attn_cfgs': 1",
        ),
        (
            dict(arch=dict(base='nano', downsampling='pool')),
            "downsampling .*; got 'pool'",
        ),
        (
            dict(arch=dict(base='nano', downsample_norm='group')),
            "downsample_norm must be one of .*; got 'group'",
        ),
    ],
)
def test_invalid_arguments_raise_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiFormer(**{'arch': 'nano', **arguments})
