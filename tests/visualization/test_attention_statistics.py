import math

import pytest
import torch
from constant_offset import set_constant_offset
from torch import nn

from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    DeformableAttention2d,
    FullAttention2d,
    ShuntedSelfAttention,
)
from mmsparse.visualization.statistics import (
    attention_distance,
    offset_spread,
    received_attention,
    routing_statistics,
)


def uniform(layer):
    """Make all attention weights equal."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def test_uniform_attention_is_received_uniformly():
    layer = uniform(ShuntedSelfAttention(8, 4, 2))

    coarse, fine = received_attention(layer, torch.randn(1, 8, 6, 8))

    assert (coarse.name, fine.name) == ('coarse', 'fine')
    torch.testing.assert_close(coarse.share, torch.full((1, 12), 1 / 12))
    torch.testing.assert_close(fine.share, torch.full((1, 48), 1 / 48))


def test_received_attention_sums_to_one_with_a_different_key_set_per_query():
    layer = BiLevelRoutingAttention(8, 2, topk=2, regions_per_side=3)

    (received,) = received_attention(layer, torch.randn(2, 8, 36, 40))

    torch.testing.assert_close(received.share.sum(1), torch.ones(2))
    assert (received.share >= 0).all()


def test_distance_of_uniform_attention_is_the_mean_over_all_pairs():
    layer = uniform(FullAttention2d(8, 2))
    cells = [(y, x) for y in range(5) for x in range(7)]
    pairs = [math.dist(a, b) for a in cells for b in cells]

    distances = attention_distance(layer, torch.randn(2, 8, 5, 7))

    mean = sum(pairs) / len(pairs)
    assert distances.tolist() == pytest.approx([mean, mean])


def test_distance_has_one_value_per_head():
    layer = DeformableAttention2d(8, 4, 2, map_size=6)

    assert attention_distance(layer, torch.randn(1, 8, 6, 6)).shape == (4,)


def test_offset_spread_is_zero_without_offsets():
    layer = DeformableAttention2d(8, 4, 2, stride=2, map_size=8)
    nn.init.zeros_(layer.conv_offset[3].weight)

    assert offset_spread(layer, torch.randn(1, 8, 9, 9)) == pytest.approx(0, abs=1e-6)


def test_offset_spread_is_the_length_of_a_constant_offset():
    layer = DeformableAttention2d(
        8, 4, 2, stride=2, map_size=8, formulation='v2022', offset_range=0
    )
    set_constant_offset(layer, y=2 * 3 / 8, x=-2 * 4 / 8)  # 3 and 4 of the 9 cells

    spread = offset_spread(layer, torch.randn(1, 8, 9, 9))

    assert spread == pytest.approx(5 / 2)  # steps of the grid


def test_routing_to_one_region_has_zero_entropy():
    layer = BiLevelRoutingAttention(8, 2, topk=1, regions_per_side=2)
    routes = torch.zeros(1, 4, 1, dtype=torch.long)
    routing = layer.regions(torch.randn(1, 8, 4, 4))
    layer.regions = lambda x: routing._replace(routes=routes)

    found = routing_statistics(layer, torch.randn(1, 8, 4, 4))

    assert found == pytest.approx((0, 3 / 4))


def test_routing_to_all_regions_has_full_entropy():
    layer = BiLevelRoutingAttention(8, 2, topk=4, regions_per_side=2)

    found = routing_statistics(layer, torch.randn(2, 8, 6, 6))

    assert found == pytest.approx((1, 0))
