import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from torch import nn

from mmsparse.models import (
    DeformableAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from mmsparse.models.layers.deformable_attention import BIASES, FORMULATIONS

LAYERS = {
    'windows': lambda: WindowAttention2d(8, num_heads=2, window_size=3),
    'shifted windows': lambda: WindowAttention2d(
        8, num_heads=2, window_size=3, shift=2
    ),
    'neighborhood': lambda: NeighborhoodAttention2d(8, num_heads=2, kernel_size=5),
    **{
        f'deformable, {formulation}, range {offset_range}': (
            lambda formulation=formulation, offset_range=offset_range: small(
                formulation=formulation, offset_range=offset_range
            )
        )
        for formulation in FORMULATIONS
        for offset_range in (2, 0, -1)
    },
    **{f'deformable, {bias}': lambda bias=bias: small(bias=bias) for bias in BIASES},
    'deformable, no offsets': lambda: small(use_offsets=False),
    'deformable, kernel of the stride': lambda: small(stride=3, offset_kernel=3),
}


def small(**arguments):
    return DeformableAttention2d(
        **{**dict(in_channels=8, num_heads=4, num_groups=2, map_size=6), **arguments}
    )


@pytest.mark.parametrize('size', [(7, 9), (1, 5), (1, 1), (12, 12)], ids=str)
@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_keeps_the_shape_and_gives_every_parameter_a_gradient(build, size):
    layer, x = build(), torch.rand(2, 8, *size)

    out = layer(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    assert out.isfinite().all()
    for name, parameter in layer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_other_images_of_the_batch_do_not_matter(build):
    layer, x = build(), torch.rand(3, 8, 7, 9)

    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_runs_in_bfloat16(build):
    layer, x = build(), torch.rand(2, 8, 7, 9)
    exact = layer(x)

    rounded = copy.deepcopy(layer).bfloat16()(x.bfloat16())

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_compiles_into_one_graph(build):
    torch.compiler.reset()
    layer, x = build(), torch.rand(2, 8, 7, 9)

    compiled = torch.compile(layer, fullgraph=True, backend='eager')

    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize('shift', [0, 2])
def test_padding_of_windows_has_the_bias_and_is_attended(shift):
    layer = WindowAttention2d(4, num_heads=1, window_size=4, shift=shift)
    x = torch.rand(1, 4, 5, 7)
    padded = F.pad(x, (0, 1, 0, 3))

    torch.testing.assert_close(layer(x), layer(padded)[..., :5, :7])


def test_padding_to_the_size_of_the_neighborhood_has_the_bias_and_is_attended():
    layer = NeighborhoodAttention2d(4, num_heads=1, kernel_size=5)
    x = torch.rand(1, 4, 3, 7)

    torch.testing.assert_close(layer(x), layer(F.pad(x, (0, 0, 0, 2)))[..., :3, :])


def test_a_neighborhood_of_the_size_of_the_feature_map_is_a_window():
    """The tables have opposite signs and different layouts."""
    neighborhood = NeighborhoodAttention2d(8, num_heads=2, kernel_size=5)
    window = WindowAttention2d(8, num_heads=2, window_size=5)
    window.qkv.load_state_dict(neighborhood.qkv.state_dict())
    window.proj.load_state_dict(neighborhood.proj.state_dict())
    table = neighborhood.relative_position_bias_table.detach().flip(1, 2).flatten(1).t()
    window.relative_position_bias_table.data.copy_(table)
    x = torch.rand(2, 8, 5, 5)

    torch.testing.assert_close(neighborhood(x), window(x))


def test_a_table_of_another_window_is_resized_when_loaded():
    one, other = (WindowAttention2d(8, 2, window_size=w) for w in (3, 5))
    planes = one.relative_position_bias_table.detach().t().view(1, 2, 5, 5)
    expected = F.interpolate(planes, (9, 9), mode='bicubic').view(2, 81).t()
    given = one.state_dict()

    other.load_state_dict(given)

    torch.testing.assert_close(other.relative_position_bias_table.detach(), expected)
    assert given['relative_position_bias_table'].shape == (25, 2)


@pytest.mark.parametrize('bias', ['table', 'fixed'])
def test_a_bias_for_another_feature_map_is_resized_when_loaded(bias):
    one, other = (
        nn.Sequential(small(bias=bias, map_size=size)) for size in (6, (8, 10))
    )
    before = one[0].relative_position_bias_table.detach()
    shape = other[0].relative_position_bias_table.shape

    other.load_state_dict(one.state_dict())

    expected = F.interpolate(before[None], shape[1:], mode='bicubic')[0]
    torch.testing.assert_close(other[0].relative_position_bias_table.detach(), expected)


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        (small(), small(num_heads=2)),
        (WindowAttention2d(8, 2, 3), WindowAttention2d(8, 4, 3)),
    ],
    ids=['deformable', 'windows'],
)
def test_a_bias_for_other_heads_does_not_load(one, other):
    with pytest.raises(RuntimeError, match='size mismatch for .*position_bias'):
        other.load_state_dict(one.state_dict())


def test_the_table_is_resized_to_feature_maps_of_other_sizes():
    """A table that is linear in the displacement is the same for any size."""
    few, many = small(map_size=4), small(map_size=9)
    for layer in (few, many):
        span = layer.relative_position_bias_table.shape[-1]
        axis = torch.linspace(-1, 1, span)
        layer.relative_position_bias_table.data.copy_(
            (axis[:, None] + 2 * axis).expand(4, -1, -1)
        )
    state = {k: v for k, v in few.state_dict().items() if 'bias_table' not in k}
    many.load_state_dict(state, strict=False)
    x = torch.rand(1, 8, 13, 7)

    torch.testing.assert_close(few(x), many(x))


def test_a_fixed_bias_is_resized_to_the_feature_map():
    layer, x = small(bias='fixed', map_size=4), torch.rand(1, 8, 6, 6)
    layer.relative_position_bias_table.data[:] = torch.randn(
        4, 1, 1
    )  # the same for all logits

    without = small(bias='none')
    without.load_state_dict(layer.state_dict(), strict=False)

    torch.testing.assert_close(layer(x), without(x))


def test_the_log_cpb_bias_is_of_signed_logarithms_of_the_displacement():
    layer, calls = small(bias='log_cpb', stride=1, offset_kernel=1), []
    layer.cpb_mlp.register_forward_pre_hook(lambda _, args: calls.append(args[0]))
    x = torch.rand(1, 8, 3, 5)

    layer(x)

    locations = layer.sampling_locations(x).flatten(2, 3)  # (B, groups, keys, 2)
    for n, y, x_ in ((0, -1, -1), (7, 0, 0), (14, 1, 1)):
        displacement = 4 * (torch.tensor([y, x_]) - locations)
        expected = displacement.sign() * (1 + displacement.abs()).log2() / 3
        torch.testing.assert_close(calls[0][:, :, n], expected)


def test_the_depthwise_bias_is_a_convolution_of_the_queries():
    layer = small(bias='depthwise')
    without = small(bias='none')
    without.load_state_dict(layer.state_dict(), strict=False)
    nn.init.eye_(layer.proj.weight)
    without.proj.load_state_dict(layer.proj.state_dict())
    x = torch.rand(1, 8, 5, 6)
    q = layer.q(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    torch.testing.assert_close(layer(x) - without(x), layer.lepe(q))


def test_without_offsets_keys_are_means_of_cells_at_the_reference_locations():
    layer, x = small(use_offsets=False), torch.rand(2, 8, 6, 8)
    locations = layer.sampling_locations(x)

    torch.testing.assert_close(layer.sample(x, locations), F.avg_pool2d(x, 2))
    assert layer.bias == 'none'
    assert not any(p.requires_grad for p in layer.conv_offset.parameters())
    assert locations[0, 0, :, 0, 0].tolist() == [-0.5, 0.5, 1]  # clamped from 1.5
    assert torch.equal(locations, layer.reference_locations(x))


@pytest.mark.parametrize('offset_range', [2, 0, -1])
@pytest.mark.parametrize('formulation', FORMULATIONS)
def test_reference_locations_are_those_of_zero_offsets(formulation, offset_range):
    layer = small(formulation=formulation, offset_range=offset_range)
    nn.init.normal_(layer.conv_offset[-1].weight)
    x = torch.rand(2, 8, 7, 9)
    references, locations = layer.reference_locations(x), layer.sampling_locations(x)
    moved = not torch.equal(references, locations)

    nn.init.zeros_(layer.conv_offset[-1].weight)

    assert moved == ((formulation, offset_range) != ('v2023', 0))
    assert torch.equal(references, layer.sampling_locations(x))


def test_offsets_of_a_group_depend_on_its_queries_only():
    layer, x = small(), torch.rand(1, 8, 6, 6)
    before = layer.sampling_locations(x)
    layer.q.weight.data[4:] += 0.5

    after = layer.sampling_locations(x)

    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_formulations_share_weights_but_not_results():
    old, new = small(formulation='v2022'), small(formulation='v2023')
    new.load_state_dict(old.state_dict())
    x = torch.rand(1, 8, 7, 9)

    assert not torch.allclose(old(x), new(x), atol=1e-3)


def test_layers_can_be_copied():
    layer, x = small(), torch.rand(1, 8, 6, 6)

    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))


@pytest.mark.parametrize(
    'name', ['WindowAttention2d', 'NeighborhoodAttention2d', 'DeformableAttention2d']
)
def test_is_a_plugin_of_mmdets_resnet(name):
    plugin = dict(
        cfg=dict(type=f'mmsparse.{name}'),
        stages=(False, False, True, True),
        position='after_conv3',
    )
    backbone = ResNet(50, base_channels=8, plugins=[plugin])

    outs = backbone(torch.rand(1, 3, 65, 93))

    assert [out.shape[1] for out in outs] == [32, 64, 128, 256]
    assert sum(type(m).__name__ == name for m in backbone.modules()) == 9


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: WindowAttention2d(8, num_heads=3), 'in_channels=8 and num_heads=3'),
        (lambda: WindowAttention2d(8, window_size=0), 'window_size .* got 0'),
        (lambda: WindowAttention2d(8, shift=7), 'window - 1, 6 here; got 7'),
        (lambda: NeighborhoodAttention2d(8, num_heads=3), 'and num_heads=3'),
        (lambda: NeighborhoodAttention2d(8, kernel_size=4), 'odd and positive; got 4'),
        (lambda: NeighborhoodAttention2d(8, kernel_size=-1), 'positive; got -1'),
        (lambda: small(num_heads=3), 'in_channels=8 and num_heads=3'),
        (lambda: small(num_groups=3), 'divide num_heads=4; got 3'),
        (lambda: small(num_groups=-1), 'divide num_heads=4; got -1'),
        (lambda: small(stride=0), 'stride must be at least 1; got 0'),
        (
            lambda: small(bias='fixed', stride=7),
            "stride must be at most map_size=6 with bias='fixed'; got 7",
        ),
        (lambda: small(offset_kernel=0), 'offset_kernel must be at least 1; got 0'),
        (lambda: small(formulation='v2021'), r"'v2022', 'v2023'\]; got 'v2021'"),
        (
            lambda: small(bias='sine'),
            "bias must be one of .*'none', 'table'.; got 'sine'",
        ),
    ],
)
def test_arguments_out_of_range_are_rejected(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_sampled_keys_and_values_have_the_strides_of_the_fused_kernel(monkeypatch):
    """With others it falls back to plain operations; as many tokens as a convolution
    projects (see linear_map)."""
    strides = []
    attend = F.scaled_dot_product_attention

    def record(q, k, v, **kwargs):
        strides.extend((k.stride(-1), v.stride(-1)))
        return attend(q, k, v, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', record)
    layer = small(stride=1, offset_kernel=3)

    with torch.inference_mode():
        layer(torch.rand(1, 8, 32, 32))

    assert strides == [1, 1]
