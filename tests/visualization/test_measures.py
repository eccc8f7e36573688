import math

import pytest
import torch
from mmsparse.visualization.measures import (
    attention_distance,
    attention_received,
    offset_spread,
    routing_use,
)
from planting import plant_offset
from torch import nn

from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    DeformableAttention2d,
    FullAttention2d,
    ShuntedSelfAttention,
)


def even(layer):
    """Let all keys weigh the same."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def test_keys_that_weigh_the_same_receive_the_same():
    layer = even(ShuntedSelfAttention(8, 4, 2))

    coarse, fine = attention_received(layer, torch.randn(1, 8, 6, 8))

    assert (coarse.name, fine.name) == ('coarse', 'fine')
    torch.testing.assert_close(coarse.share, torch.full((1, 12), 1 / 12))
    torch.testing.assert_close(fine.share, torch.full((1, 48), 1 / 48))


def test_what_is_received_sums_to_one_where_queries_have_own_keys():
    layer = BiLevelRoutingAttention(8, 2, topk=2, regions_per_side=3)

    (received,) = attention_received(layer, torch.randn(2, 8, 36, 40))

    torch.testing.assert_close(received.share.sum(1), torch.ones(2))
    assert (received.share >= 0).all()


def test_distance_of_even_attention_is_the_mean_of_all_pairs():
    layer = even(FullAttention2d(8, 2))
    places = [(y, x) for y in range(5) for x in range(7)]
    pairs = [math.dist(a, b) for a in places for b in places]

    distances = attention_distance(layer, torch.randn(2, 8, 5, 7))

    mean = sum(pairs) / len(pairs)
    assert distances.tolist() == pytest.approx([mean, mean])


def test_distance_has_one_number_for_each_head_of_every_group():
    layer = DeformableAttention2d(8, 4, 2, map_size=6)

    assert attention_distance(layer, torch.randn(1, 8, 6, 6)).shape == (4,)


def test_spread_is_zero_without_offsets():
    layer = DeformableAttention2d(8, 4, 2, stride=2, map_size=8)
    nn.init.zeros_(layer.conv_offset[3].weight)

    assert offset_spread(layer, torch.randn(1, 8, 9, 9)) == pytest.approx(0, abs=1e-6)


def test_spread_is_the_offset_where_all_keys_move_alike():
    layer = DeformableAttention2d(
        8, 4, 2, stride=2, map_size=8, formulation='v2022', offset_range=0
    )
    plant_offset(layer, y=2 * 3 / 8, x=-2 * 4 / 8)  # 3 and 4 of the 9 cells

    spread = offset_spread(layer, torch.randn(1, 8, 9, 9))

    assert spread == pytest.approx(5 / 2)  # steps of the grid


def test_routing_to_one_region_has_no_entropy():
    layer = BiLevelRoutingAttention(8, 2, topk=1, regions_per_side=2)
    routes = torch.zeros(1, 4, 1, dtype=torch.long)
    routing = layer.regions(torch.randn(1, 8, 4, 4))
    layer.regions = lambda x: routing._replace(routes=routes)

    use = routing_use(layer, torch.randn(1, 8, 4, 4))

    assert use == pytest.approx((0, 3 / 4))


def test_routing_to_all_regions_alike_has_full_entropy():
    layer = BiLevelRoutingAttention(8, 2, topk=4, regions_per_side=2)

    assert routing_use(layer, torch.randn(2, 8, 6, 6)) == pytest.approx((1, 0))
