"""Attention maps of the layers, against what the layers compute."""

import pytest
import torch
from torch import nn
from torch.nn.functional import grid_sample

from mmsparse.models.layers import (
    AgentAttention2d,
    AxialAttention2d,
    BiLevelRoutingAttention,
    CrossShapedAttention2d,
    DeformableAttention2d,
    FullAttention2d,
    LinearSpatialReductionAttention2d,
    MultiScaleDeformableAttention2d,
    NeighborhoodAttention2d,
    ShuntedSelfAttention,
    SpatialReductionAttention2d,
    WindowAttention2d,
)
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import pad_to_multiple, partition_regions
from mmsparse.ops.routing import pool_keys

CHANNELS = 8


def routed(**options):
    return BiLevelRoutingAttention(
        CHANNELS, 2, topk=3, regions_per_side=3, lepe_kernel=0, **options
    )


def routed_values(layer, x):
    """Padded and pooled values, region by region."""
    routing, v = layer.regions(x), layer.project(x)[2]
    v = pool_keys(pad_to_multiple(v, routing.region), routing.grid, layer.kv_pool)
    return partition_regions(v, routing.grid).flatten(1, 2)


def deformable(**options):
    return DeformableAttention2d(CHANNELS, 4, 2, map_size=6, **options)


def deformable_values(layer, x):
    sampled = layer.sample(x, layer.sampling_locations(x))
    return layer.v(channels_last(sampled)).flatten(1, 2)


def full_values(layer, x):
    return layer.qkv(channels_last(x)).chunk(3, -1)[2].flatten(1, 2)


def shunted_values(layer, x):
    if layer.sr_ratio == 1:
        return layer.kv(channels_last(x)).chunk(2, -1)[1].flatten(1, 2)
    return [layer.coarse(x)[1], layer.fine(x)[1]]


def reduced_values(layer, x):
    return layer._keys_and_values(x)[1].flatten(1, 2)


def projected_values(layer, x):
    return layer._project(x)[2].flatten(1, 2)


def without_lepe(layer):
    """Add nothing to the attention."""
    nn.init.zeros_(layer.lepe.weight)
    nn.init.zeros_(layer.lepe.bias)
    return layer


LAYERS = {
    'routed': (lambda: routed(), routed_values, 'proj'),
    'routed, tokens': (lambda: routed(padding='tokens'), routed_values, 'proj'),
    'routed, avg': (lambda: routed(kv_pool=('avg', 2)), routed_values, 'proj'),
    'routed, adaptive max': (
        lambda: routed(kv_pool=('adaptive_max', 2)),
        routed_values,
        'proj',
    ),
    'deformable': (lambda: deformable(), deformable_values, 'proj'),
    'deformable, v2022': (
        lambda: deformable(formulation='v2022', offset_range=2),
        deformable_values,
        'proj',
    ),
    'deformable, fixed': (
        lambda: deformable(bias='fixed'),
        deformable_values,
        'proj',
    ),
    'deformable, log_cpb': (
        lambda: deformable(bias='log_cpb'),
        deformable_values,
        'proj',
    ),
    'deformable, no offsets': (
        lambda: deformable(use_offsets=False, formulation='v2022'),
        deformable_values,
        'proj',
    ),
    'full': (lambda: FullAttention2d(CHANNELS, 2, lepe_kernel=0), full_values, 'proj'),
    'shunted': (lambda: ShuntedSelfAttention(CHANNELS, 4, 4), shunted_values, 'proj'),
    'shunted, full': (
        lambda: without_lepe(ShuntedSelfAttention(CHANNELS, 4, 1)),
        shunted_values,
        'proj',
    ),
    'neighborhood': (
        lambda: NeighborhoodAttention2d(CHANNELS, 2, 5),
        projected_values,
        'proj',
    ),
    'dilated neighborhood': (
        lambda: NeighborhoodAttention2d(CHANNELS, 2, 3, dilation=2),
        projected_values,
        'proj',
    ),
    'dilated windows': (
        lambda: WindowAttention2d(CHANNELS, 2, 2, shift=1, dilation=3),
        projected_values,
        'proj',
    ),
    'spatial reduction': (
        lambda: SpatialReductionAttention2d(CHANNELS, 2, 4),
        reduced_values,
        'proj',
    ),
    'pooled': (
        lambda: LinearSpatialReductionAttention2d(CHANNELS, 2, 3),
        reduced_values,
        'proj',
    ),
    'cross-shaped': (
        lambda: CrossShapedAttention2d(CHANNELS, 4, 3, lepe_kernel=0),
        full_values,
        'proj',
    ),
    'agents': (
        lambda: AgentAttention2d(CHANNELS, 2, 4, lepe_kernel=0),
        full_values,
        'proj',
    ),
    'windows': (lambda: WindowAttention2d(CHANNELS, 2, 4), projected_values, 'proj'),
    'shifted windows': (
        lambda: WindowAttention2d(CHANNELS, 2, 4, shift=2),
        projected_values,
        'proj',
    ),
}


def attend(attention_maps, values):
    """Sum the values of the attention maps by their weights, to (B, n, C)."""
    if not isinstance(values, list):
        heads = [x.weights.shape[1] for x in attention_maps]
        channels = values.shape[-1] // sum(heads)
        values = values.split([channels * count for count in heads], dim=-1)
    outs = []
    for attention, v in zip(attention_maps, values, strict=True):
        assert attention.index.max() < attention.keys.shape[1] == v.shape[1]
        own = torch.stack([x[i] for x, i in zip(v, attention.index, strict=True)])
        own = own.unflatten(-1, (attention.weights.shape[1], -1))  # by head
        outs.append(torch.einsum('bhnm,bnmhd->bnhd', attention.weights, own).flatten(2))
    return torch.cat(outs, dim=-1)


@pytest.mark.parametrize('size', [(12, 12), (7, 13)], ids=str)
@pytest.mark.parametrize('name', LAYERS)
def test_attention_maps_are_what_the_layer_computes(name, size):
    build, values_of, proj = LAYERS[name]
    layer = build().double().eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    if name == 'shunted, full':
        without_lepe(layer)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.double)
    queries = torch.arange(size[0] * size[1])[1::3]

    with torch.no_grad():
        out = attend(layer.attention_maps(x, queries), values_of(layer, x))
        expected = channels_last(layer(x)).flatten(1, 2)[:, queries]
        actual = getattr(layer, proj)(out)

    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('name', LAYERS)
def test_weights_of_a_query_sum_to_one(name):
    layer = LAYERS[name][0]().eval()
    x = torch.randn(1, CHANNELS, 8, 12)

    for attention in layer.attention_maps(x, torch.tensor([0, 17, 95])):
        total = attention.weights.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_keys_are_at_the_centers_of_their_values():
    """A layer whose values are its input averages a feature map of coordinates."""
    layer = routed(kv_pool=('avg', 2))
    layer.split = (CHANNELS, CHANNELS, CHANNELS)
    rows, columns = torch.meshgrid(
        torch.arange(12) + 0.5, torch.arange(18) + 0.5, indexing='ij'
    )
    x = torch.stack([rows, columns, *[rows * 0] * (CHANNELS - 2)])[None]
    nn.init.zeros_(layer.qkv.weight)
    nn.init.zeros_(layer.qkv.bias)
    with torch.no_grad():
        layer.qkv.weight[2 * CHANNELS :].copy_(torch.eye(CHANNELS))

    (attention,) = layer.attention_maps(x, torch.tensor([0]))

    centers = routed_values(layer, x)[..., :2]
    torch.testing.assert_close(attention.keys, centers)
    assert attention.extent == (2, 2)


def test_sampled_keys_are_at_their_sampling_locations():
    layer = deformable(offset_range=-1)
    size = (9, 13)
    rows, columns = torch.meshgrid(
        torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing='ij'
    )
    nn.init.normal_(layer.conv_offset[-1].weight, std=0.2)
    x = torch.randn(1, CHANNELS, *size)

    attention_maps = layer.attention_maps(x, torch.tensor([0]))

    coordinates = torch.stack([rows, columns] * 4)[None]  # every group has both
    sampled = layer.sample(coordinates, layer.sampling_locations(x))
    for i, attention in enumerate(attention_maps):
        expected = sampled[0, 4 * i : 4 * i + 2].flatten(1).T
        torch.testing.assert_close(attention.keys[0], expected)


def test_regions_are_those_that_attention_runs_in():
    layer = routed(padding='tokens')
    x = torch.randn(2, CHANNELS, 10, 7)

    routing = layer.regions(x)

    assert routing.region == (3, 2)
    assert routing.grid == (4, 4)
    assert routing.routes.shape == routing.scores.shape == (2, 16, 3)
    assert (routing.scores.diff(dim=-1) <= 0).all()
    (attention,) = layer.attention_maps(
        x, torch.tensor([7 * 3 + 2])
    )  # row 3, column 2: region 5
    assert (
        attention.index[:, 0].view(2, 3, 6) // 6 == routing.routes[:, 5, :, None]
    ).all()


def test_coarse_and_fine_keys_tile_the_feature_map():
    coarse, fine = ShuntedSelfAttention(CHANNELS, 4, 4).attention_maps(
        torch.randn(1, CHANNELS, 8, 9), torch.tensor([0])
    )

    assert (coarse.name, coarse.extent) == ('coarse', (4, 4))
    assert coarse.keys[0].tolist() == [[2, 2], [2, 6], [6, 2], [6, 6]]
    assert (fine.name, fine.extent) == ('fine', (2, 2))
    assert fine.keys[0, :5].tolist() == [[1, 1], [1, 3], [1, 5], [1, 7], [3, 1]]


@pytest.mark.parametrize('size', [(12, 12), (7, 13)], ids=str)
def test_sampling_locations_of_every_query_are_those_of_the_layer(size):
    layer = MultiScaleDeformableAttention2d(CHANNELS, 2, num_points=3).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, CHANNELS, *size)
    queries = torch.arange(size[0] * size[1])[1::3]
    values = layer.value_proj(channels_last(x))

    heads = []
    for attention, value in zip(
        layer.attention_maps(x, queries), values.chunk(2, -1), strict=True
    ):
        locations = (
            2 * attention.locations() / torch.tensor(size) - 1
        )  # (B, n, points, 2)
        sampled = grid_sample(
            channels_first(value), locations.flip(-1), align_corners=False
        )
        heads.append((attention.weights * sampled).sum(-1).mT)
        torch.testing.assert_close(
            attention.weights.sum(-1), torch.ones(2, 1, len(queries))
        )

    actual = layer.output_proj(torch.cat(heads, dim=-1))
    expected = channels_last(layer(x)).flatten(1, 2)[:, queries]
    torch.testing.assert_close(actual, expected)


def test_attention_along_columns_and_rows_is_what_the_layer_computes():
    layer = AxialAttention2d(CHANNELS, 2, lepe_kernel=0).double()
    x = torch.randn(2, CHANNELS, 7, 13, dtype=torch.double)
    queries = torch.arange(7 * 13)[1::3]

    columns, rows = layer.attention_maps(x, queries)

    attended = layer.columns(channels_last(x), (7, 1))
    values = layer.columns.qkv(channels_last(x)).chunk(3, -1)[2].flatten(1, 2)
    expected = attended.flatten(1, 2)[:, queries]
    torch.testing.assert_close(attend((columns,), values), expected)
    values = layer.rows.qkv(attended).chunk(3, -1)[2].flatten(1, 2)
    out = layer.proj(attend((rows,), values))
    torch.testing.assert_close(out, channels_last(layer(x)).flatten(1, 2)[:, queries])
    assert (columns.name, rows.name) == ('columns', 'rows')


def test_pooled_keys_are_cells_of_a_grid_over_the_feature_map():
    (attention,) = LinearSpatialReductionAttention2d(CHANNELS, 2, 4).attention_maps(
        torch.randn(1, CHANNELS, 6, 8), torch.tensor([0])
    )

    assert attention.extent == (1.5, 2)
    assert attention.keys[0, :5].tolist() == [
        [0.75, 1],
        [0.75, 3],
        [0.75, 5],
        [0.75, 7],
        [2.25, 1],
    ]
