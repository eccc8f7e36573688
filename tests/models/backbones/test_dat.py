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
from mmsparse.models.layers.norm import LayerNorm2d

CONFIGS = Path(__file__).parents[3] / 'configs' / 'dat'
SMALL_WINDOWS = dict(
    formulation='v2022',
    embed_dims=(8, 16, 32, 64),
    depths=(2, 2, 4, 2),
    num_heads=(1, 2, 4, 8),
    block_types=('LS', 'LS', 'LD', 'LD'),
    num_groups=(1, 1, 2, 4),
    offset_kernels=(9, 7, 5, 3),
    offset_ranges=2,
    window_sizes=4,
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
        head = nn.Linear(backbone.arch.embed_dims[-1], 1000)
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


def test_block_types_are_repeated_over_the_blocks_of_a_stage():
    types = {
        'L': WindowAttention2d,
        'S': WindowAttention2d,
        'N': NeighborhoodAttention2d,
        'D': DeformableAttention2d,
        'M': MultiScaleDeformableAttention2d,
    }
    backbone = DAT(
        dict(base='nano', depths=(2, 3, 5, 1), block_types=('LS', 'ND', 'LDM', 'D'))
    )

    for stage, expected in zip(
        backbone.stages, ('LS', 'NDN', 'LDMLD', 'D'), strict=True
    ):
        assert [type(b.attn) for b in stage] == [types[letter] for letter in expected]
    assert [block.attn.shift for block in backbone.stages[0]] == [0, 4]  # not 3


def test_position_bias_tables_have_the_size_for_img_size():
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
    ('formulation', 'downsampling', 'expected'),
    [
        ('v2022', 'patches', [(4, 4, 0)]),
        ('v2022', 'overlapping', [(7, 4, 3)]),
        ('v2023', 'patches', [(4, 4, 0)]),
        ('v2023', 'overlapping', [(3, 2, 1), (3, 2, 1)]),
    ],
)
def test_stems_have_the_convolutions_of_their_formulation(
    formulation, downsampling, expected
):
    backbone = DAT(
        dict(base='nano', formulation=formulation, downsampling=downsampling)
    )

    found = [
        (layer.kernel_size[0], layer.stride[0], layer.padding[0])
        for layer in backbone.downsamples[0]
        if isinstance(layer, nn.Conv2d)
    ]
    assert found == expected


def test_a_stem_of_another_width_is_projected():
    plain, wide = DAT('nano'), DAT(dict(base='nano', stem_channels=48))

    assert 'proj' not in dict(plain.downsamples[0].named_children())
    assert wide.downsamples[0].proj.weight.shape == (32, 48, 1, 1)
    assert wide(torch.rand(1, 3, 64, 64))[0].shape == (1, 256, 2, 2)


def test_the_mlp_with_a_convolution_is_residual_in_v2023_alone():
    new, old = DAT('nano'), DAT(dict(base='nano', formulation='v2022'))

    assert new.stages[0][0].mlp.dwconv.residual
    assert not old.stages[0][0].mlp.dwconv.residual
    assert DAT(dict(base='nano', mlp_kernels=0)).stages[0][0].mlp.dwconv is None


def test_layer_scales_are_per_stage():
    arch = dict(base='nano', layer_scales=(None, 0.5, None, None))
    backbone = DAT(arch, out_indices=(1,), out_norm='layer').eval()
    (scaled, _), (plain, _) = backbone.stages[1], backbone.stages[0]

    assert scaled.layer_scale1.weight.unique().item() == 0.5
    assert scaled.layer_scale2.weight.unique().item() == 0.5
    assert isinstance(plain.layer_scale1, nn.Identity)


@pytest.mark.parametrize('formulation', ['v2022', 'v2023'])
@pytest.mark.parametrize('size', [(64, 64), (70, 101), (32, 160), (32, 32)], ids=str)
def test_windows_take_any_size(formulation, size):
    arch = dict(SMALL_WINDOWS, formulation=formulation)
    backbone = DAT(arch, out_indices=(0, 1, 2, 3), out_norm='layer')

    outs = backbone(torch.rand(2, 3, *size))

    height, width = (length // 4 for length in size)
    for i, out in enumerate(outs):
        assert out.shape[2:] == (height >> i, width >> i)
        assert out.isfinite().all()


def test_block_type_m_runs_and_trains():
    backbone = DAT(dict(base='nano', block_types=('N', 'N', 'M', 'M'), num_points=4))

    backbone(torch.rand(2, 3, 64, 64))[0].square().mean().backward()

    assert all(p.grad.isfinite().all() for p in backbone.parameters())


def test_feature_maps_of_one_pixel_are_finite_with_finite_gradients():
    backbone = DAT('nano')

    (out,) = backbone(torch.rand(2, 3, 32, 32))
    out.square().sum().backward()

    assert out.shape == (2, 256, 1, 1)
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


# The fewest blocks with every type of attention.
@pytest.mark.parametrize(
    'arch',
    [
        dict(base='nano', depths=(1, 1, 2, 1), block_types=('N', 'D', 'ND', 'D')),
        SMALL_WINDOWS | dict(depths=(2, 1, 2, 1), block_types=('LS', 'L', 'LD', 'D')),
    ],
    ids=['nano', 'windows'],
)
def test_compiles_into_one_graph(arch):
    torch.compiler.reset()
    backbone = DAT(arch, out_indices=(1, 3), out_norm='layer').eval()
    compiled = torch.compile(backbone, fullgraph=True, backend='eager')
    x = torch.rand(2, 3, 65, 93)

    torch.testing.assert_close(compiled(x), backbone(x))


def test_downsample_act_is_a_gelu_after_every_downsampling():
    last = [type(module[-1]) for module in DAT('nano').downsamples]

    assert last == [nn.GELU] * 4
    assert type(DAT('pp-tiny').downsamples[0][-1]) is LayerNorm2d


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
    backbone = DAT(dict(base='nano', block_types=('LS', 'ND', 'ND', 'D')))

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


def test_tables_of_neighborhood_attention_alone_have_weight_decay():
    backbone = DAT(
        dict(
            base='nano',
            block_types=('LS', 'ND', 'ND', 'D'),
            position_biases=('none', 'table', 'log_cpb', 'depthwise'),
        )
    )

    exempt = backbone.no_weight_decay()

    tables = {
        name for name, _ in backbone.named_parameters() if 'position_bias' in name
    }
    assert tables - exempt == {
        f'stages.{i}.0.attn.relative_position_bias_table' for i in (1, 2)
    }
    assert {'stages.0.1.attn.relative_position_bias_table'} <= exempt
    assert {'stages.2.1.attn.cpb_mlp.0.weight', 'stages.3.0.attn.lepe.weight'} <= exempt


def test_autocast_stays_near_float32():
    backbone, x = DAT('nano').eval(), torch.rand(1, 3, 65, 93)

    with torch.autocast('cpu', torch.bfloat16):
        (rounded,) = backbone(x)

    (exact,) = backbone(x)
    assert (rounded.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='huge'), "'small', 'tiny'.; got 'huge'"),
        (
            dict(arch={k: v for k, v in SMALL_WINDOWS.items() if k != 'formulation'}),
            r"missing: \['formulation'\]",
        ),
        (
            dict(arch=dict(base='nano', block_types=('ND', 'NX', 'D', 'D'))),
            r"block_types\[1\].* 'NX'",
        ),
        (
            dict(arch=dict(base='nano', block_types=('', 'N', 'D', 'D'))),
            r"block_types\[0\].* ''",
        ),
        (
            dict(arch=dict(base='nano', num_heads=(1, 3, 4, 8))),
            r'stages\[1\]: .* in_channels=64 and num_heads=3',
        ),
        (
            dict(arch=dict(base='nano', num_groups=(1, 1, 3, 4))),
            r'stages\[2\]: num_groups must divide num_heads=4; got 3',
        ),
        (
            dict(arch=dict(base='nano', strides=(0, 2, 1, 1))),
            r'strides\[0\] must be an integer of at least 1; got 0',
        ),
        (
            dict(
                arch=dict(base='nano', strides=(33, 2, 1, 1), position_biases='fixed')
            ),
            r'stages\[0\]: stride must be at most map_size=32 .*fixed.*; got 33',
        ),
        (
            dict(arch=dict(base='nano', img_size=31)),
            'img_size must be at least 32, .* 31',
        ),
        (
            dict(arch=dict(base='nano', downsample_act='no')),
            "downsample_act must be True or False; .*'no",
        ),
        (dict(arch=dict(base='nano', strides=(1, 2))), "stages; got .*'strides': 2"),
        (dict(arch=dict(base='nano', heads=3)), r"unknown: \['heads'\]"),
        (dict(out_norm='batch'), r"'class', 'layer'.; got 'batch'"),
        (
            dict(arch=dict(base='nano', downsample_norm='group')),
            "downsample_norm must be one of .*; got 'group'",
        ),
    ],
)
def test_invalid_arguments_raise_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DAT(**{'arch': 'nano', **arguments})
