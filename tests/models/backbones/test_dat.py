import copy
from pathlib import Path

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmsparse.apis import read_config
from mmsparse.models import (
    DAT,
    DeformableAttention2d,
    MultiScaleDeformableAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from mmsparse.models.layers import ConvMlp2d, LayerNorm2d, Mlp2d

CONFIGS = Path(__file__).parents[3] / 'configs' / 'dat'
NANO = DAT.arch_settings['nano']
SMALL_WINDOWS = dict(
    formulation='v2022',
    embed_dims=(8, 16, 32, 64),
    depths=(2, 2, 4, 2),
    num_heads=(1, 2, 4, 8),
    kinds=('LS', 'LS', 'LD', 'LD'),
    groups=(-1, -1, 2, 4),
    offset_kernel=(9, 7, 5, 3),
    offset_range=2,
    window_size=4,
    img_size=64,
)


@pytest.mark.parametrize(
    ('arch', 'published'),
    [
        ('tiny', 28_319_138),
        ('small', 49_700_402),
        ('base', 87_881_632),
        ('base-384', 88_178_272),
        ('pp-tiny', 23_962_876),
        ('pp-small', 53_127_366),
        ('pp-base', 93_690_640),
    ],
)
def test_has_the_published_number_of_parameters(arch, published):
    with torch.device('meta'):
        backbone = DAT(arch)
        head = nn.Linear(backbone.arch_settings[arch]['embed_dims'][-1], 1000)
    modules = nn.ModuleList([backbone, head])

    assert sum(parameter.numel() for parameter in modules.parameters()) == published


@pytest.mark.parametrize(
    ('arch', 'published'),
    [('pp-tiny', 23_450_772), ('pp-small', 52_359_710), ('pp-base', 92_667_432)],
)
def test_has_the_published_number_of_parameters_for_dense_tasks(arch, published):
    with torch.device('meta'):
        backbone = DAT(arch, out_indices=(0, 1, 2, 3), out_norm='layer')

    assert sum(parameter.numel() for parameter in backbone.parameters()) == published


def test_kinds_are_repeated_over_the_blocks_of_a_stage():
    kinds = {
        'L': WindowAttention2d,
        'S': WindowAttention2d,
        'N': NeighborhoodAttention2d,
        'D': DeformableAttention2d,
        'M': MultiScaleDeformableAttention2d,
    }
    backbone = DAT({**NANO, 'depths': (2, 3, 5, 1), 'kinds': ('LS', 'ND', 'LDM', 'D')})

    for stage, expected in zip(
        backbone.stages, ('LS', 'NDN', 'LDMLD', 'D'), strict=True
    ):
        assert [type(b.attn) for b in stage] == [kinds[kind] for kind in expected]
    assert [block.attn.shift for block in backbone.stages[0]] == [0, 4]  # not 3


def test_tables_have_the_size_of_the_maps_that_they_are_made_for():
    with torch.device('meta'):
        backbones = [DAT('pp-tiny'), DAT('base-384')]

    tables = [
        [
            tuple(stage[1].attn.relative_position_bias_table.shape[1:])
            for stage in backbone.stages[2:]
        ]
        for backbone in backbones
    ]
    assert tables == [[(27, 27), (13, 13)], [(47, 47), (23, 23)]]


@pytest.mark.parametrize(
    ('formulation', 'conv_stem', 'expected'),
    [
        ('v2022', False, [(4, 4, 0)]),
        ('v2022', True, [(7, 4, 3)]),
        ('v2023', False, [(4, 4, 0)]),
        ('v2023', True, [(3, 2, 1), (3, 2, 1)]),
    ],
)
def test_stems_have_the_convolutions_of_their_formulation(
    formulation, conv_stem, expected
):
    backbone = DAT({**NANO, 'formulation': formulation, 'conv_stem': conv_stem})

    found = [
        (layer.kernel_size[0], layer.stride[0], layer.padding[0])
        for layer in backbone.downsamples[0]
        if isinstance(layer, nn.Conv2d)
    ]
    assert found == expected


def test_a_stem_of_another_width_is_projected():
    plain, wide = DAT('nano'), DAT({**NANO, 'stem_dims': 48})

    assert 'proj' not in dict(plain.downsamples[0].named_children())
    assert wide.downsamples[0].proj.weight.shape == (32, 48, 1, 1)
    assert wide(torch.rand(1, 3, 64, 64))[0].shape == (1, 256, 2, 2)


def test_the_mlp_with_a_convolution_is_residual_in_v2023_alone():
    new, old = DAT('nano'), DAT({**NANO, 'formulation': 'v2022'})

    assert new.stages[0][0].mlp.dwconv.residual
    assert not old.stages[0][0].mlp.dwconv.residual
    assert type(DAT({**NANO, 'conv_mlp': False}).stages[0][0].mlp) is Mlp2d


@pytest.mark.parametrize('residual', [True, False])
def test_the_convolution_stands_between_the_linear_maps(residual):
    mlp, x = ConvMlp2d(4, ratio=2, residual=residual), torch.rand(2, 4, 5, 6)
    hidden = mlp.fc1(x.movedim(1, -1)).movedim(-1, 1)
    kernels, bias = mlp.dwconv.weight, mlp.dwconv.bias
    mixed = nn.functional.conv2d(hidden, kernels, bias, padding=1, groups=8)
    if residual:
        mixed = mixed + hidden

    expected = mlp.fc2(nn.functional.gelu(mixed).movedim(1, -1)).movedim(-1, 1)

    torch.testing.assert_close(mlp(x), expected)


def test_layer_scale_scales_attention_and_mlp():
    arch = {**NANO, 'layer_scale': (0, 0.5, 0, 0)}
    backbone = DAT(arch, out_indices=(1,), out_norm='layer').eval()
    block, x = backbone.stages[1][0], torch.rand(1, 64, 8, 8)
    middle = block.pos_conv(x)
    middle = middle + 0.5 * block.attn(block.norm1(middle))

    expected = middle + 0.5 * block.mlp(block.norm2(middle))

    torch.testing.assert_close(block(x), expected)
    assert isinstance(backbone.stages[0][0].layer_scale1, nn.Identity)


@pytest.mark.parametrize('formulation', ['v2022', 'v2023'])
@pytest.mark.parametrize('size', [(64, 64), (70, 101), (32, 160), (32, 32)], ids=str)
def test_windows_take_any_size(formulation, size):
    arch = {**SMALL_WINDOWS, 'formulation': formulation}
    backbone = DAT(arch, out_indices=(0, 1, 2, 3), out_norm='layer')

    outs = backbone(torch.rand(2, 3, *size))

    height, width = (length // 4 for length in size)
    for i, out in enumerate(outs):
        assert out.shape[2:] == (height >> i, width >> i)
        assert out.isfinite().all()


def test_block_kind_m_runs_and_trains():
    backbone = DAT({**NANO, 'kinds': ('N', 'N', 'M', 'M'), 'num_points': 4})

    backbone(torch.rand(2, 3, 64, 64))[0].square().mean().backward()

    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_maps_of_one_pixel_are_finite_with_finite_gradients():
    backbone = DAT('nano')

    (out,) = backbone(torch.rand(2, 3, 32, 32))
    out.square().sum().backward()

    assert out.shape == (2, 256, 1, 1)
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    'arch',
    [pytest.param('nano', marks=pytest.mark.slow), SMALL_WINDOWS],
    ids=['nano', 'windows'],
)
def test_compiles_into_one_graph(arch):
    torch.compiler.reset()
    backbone = DAT(arch, out_indices=(1, 3), out_norm='layer').eval()
    compiled = torch.compile(backbone, fullgraph=True, backend='eager')
    x = torch.rand(2, 3, 65, 93)

    torch.testing.assert_close(compiled(x), backbone(x))


def test_gelu_follows_every_downsampling_where_the_arch_says_so():
    last = [type(module[-1]) for module in DAT('nano').downsamples]

    assert last == [nn.GELU] * 4
    assert type(DAT('pp-tiny').downsamples[0][-1]) is LayerNorm2d


def test_stochastic_depth_grows_linearly_over_all_blocks():
    backbone = DAT('nano', drop_path_rate=0.3)

    rates = [block.drop_path.drop_prob for stage in backbone.stages for block in stage]

    assert rates == pytest.approx([0.3 * i / 6 for i in range(7)])


def test_initializes_as_torch_does_and_tables_near_zero():
    backbone = DAT('nano')
    backbone.init_weights()
    block = backbone.stages[2][1]

    bound = 128**-0.5  # uniform up to it
    assert 0.9 * bound < block.attn.q.weight.abs().max().item() <= bound
    assert block.attn.relative_position_bias_table.std().item() == pytest.approx(
        0.01, rel=0.1
    )
    neighborhood = backbone.stages[0][0].attn
    assert neighborhood.relative_position_bias_table.std().item() == pytest.approx(
        0.02, rel=0.3
    )


def test_the_recipe_decays_neither_position_biases_nor_vectors():
    cfg = read_config(str(CONFIGS / 'dat-tiny_32xb128-300e_in1k.py'))
    backbone = DAT({**NANO, 'kinds': ('LS', 'ND', 'ND', 'D')})

    optimizer = build_optim_wrapper(backbone, cfg.optim_wrapper).optimizer

    decay = {
        id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']
    }
    for name, parameter in backbone.named_parameters():
        layer = backbone.get_submodule(name.rpartition('.')[0])
        table = 'relative_position_bias_table' in name
        decayed = isinstance(layer, NeighborhoodAttention2d)  # as released
        exempt = parameter.ndim == 1 or (table and not decayed)
        assert decay[id(parameter)] == (0 if exempt else 0.05), name


def test_autocast_stays_near_float32():
    backbone, x = DAT('nano').eval(), torch.rand(1, 3, 65, 93)

    with torch.autocast('cpu', torch.bfloat16):
        (rounded,) = backbone(x)

    (exact,) = backbone(x)
    assert (rounded.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


def test_a_given_arch_is_left_as_it_was():
    arch = {**NANO, 'depths': [1, 1, 1, 1]}
    before = copy.deepcopy(arch)

    DAT(arch)

    assert arch == before


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), "'small', 'tiny'.; got 'huge'"),
        (
            dict(arch={k: v for k, v in NANO.items() if k != 'formulation'}),
            r"set formulation to one of \['v2022', 'v2023'\].* got None",
        ),
        (dict(arch={**NANO, 'kinds': ('ND', 'NX', 'D', 'D')}), r"kinds\[1\].* 'NX'"),
        (dict(arch={**NANO, 'kinds': ('', 'N', 'D', 'D')}), r"kinds\[0\].* ''"),
        (
            dict(arch={**NANO, 'num_heads': (1, 3, 4, 8)}),
            r'embed_dims\[1\]=64 and num_heads=3',
        ),
        (
            dict(arch={**NANO, 'groups': (1, 1, 3, 4)}),
            r'groups\[2\] must divide num_heads\[2\]=4; got 3',
        ),
        (
            dict(arch={**NANO, 'strides': (0, 2, 1, 1)}),
            r'strides\[0\] must be at least 1.*; got 0',
        ),
        (
            dict(arch={**NANO, 'strides': (33, 2, 1, 1), 'bias': 'fixed'}),
            r'strides\[0\] .* with the fixed bias at most .* 32; got 33',
        ),
        (dict(arch={**NANO, 'img_size': 31}), 'img_size must be at least 32, .* 31'),
        (
            dict(arch={**NANO, 'conv_stem': 'no'}),
            "conv_stem must be True or False; .*'no",
        ),
        (dict(arch={**NANO, 'strides': (1, 2)}), "stages; got .*'strides': 2"),
        (dict(arch={**NANO, 'heads': 3}), r"unknown: \['heads'\]"),
        (dict(out_norm='batch'), r"'class', 'layer'.; got 'batch'"),
        (
            dict(arch={**NANO, 'downsample_norm': 'group'}),
            "downsample_norm must be one of .*; got 'group'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DAT(**{'arch': 'nano', **arguments})
