from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsparse.analysis.flops import count, measure
from mmsparse.apis import build_model, read_config
from mmsparse.models import (
    DAT,
    BiFormer,
    BiLevelRoutingAttention,
    NeighborhoodAttention2d,
    ShuntedTransformer,
)
from mmsparse.ops import neighborhood_attention

CONFIGS = Path(__file__).parents[2] / 'configs' / 'biformer'
ALL = dict(out_indices=(0, 1, 2, 3))
DENSE = dict(**ALL, out_norm='layer')


@pytest.mark.parametrize(
    ('backbone', 'arguments', 'shape', 'billions'),
    [
        # Less what the official code spends on projecting padding that it then crops.
        (BiFormer, dict(arch='small', regions_per_side=16), (800, 1344), 142.4 - 2.5),
        (BiFormer, dict(arch='tiny', regions_per_side=8), (512, 2048), 88.5),
        (BiFormer, dict(arch='base', regions_per_side=8), (512, 512), 57.6),
        (DAT, dict(arch='pp-tiny'), (800, 1344), 132.6),
        (DAT, dict(arch='pp-small'), (800, 1280), 247.5),
        (DAT, dict(arch='pp-base'), (512, 2048), 423.3),
        (ShuntedTransformer, dict(arch='small'), (800, 1344), 258.7),
        (ShuntedTransformer, dict(arch='tiny'), (384, 384), 7.2),
        (ShuntedTransformer, dict(arch='base'), (512, 2048), 397.3),
    ],
)
def test_large_pictures_cost_what_the_official_backbones_do(
    backbone, arguments, shape, billions
):
    settings = ALL if backbone is ShuntedTransformer else DENSE
    with torch.device('meta'):
        model = backbone(**arguments, **settings)

    total = measure(model, shape)[-1]

    assert total.macs / 1e9 == pytest.approx(billions, rel=0.01)


class Depthwise(nn.Conv2d):
    def __init__(self):
        super().__init__(6, 6, 3, padding=1, groups=6)


class Grouped(nn.Conv2d):
    def __init__(self):
        super().__init__(6, 8, 3, stride=2, padding=1, groups=2)


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2).unflatten(-1, (2, 3)).transpose(1, 2)
        return F.scaled_dot_product_attention(
            tokens, tokens[:, :, :10], tokens[:, :, :10]
        )


class Sampling(nn.Module):
    def forward(self, x):
        return F.grid_sample(x, x.new_zeros(1, 5, 7, 2), align_corners=True)


class Normalization(nn.BatchNorm2d):
    def __init__(self):
        super().__init__(6)


@pytest.mark.parametrize(
    ('module', 'macs'),
    [
        (Depthwise, 6 * 9 * 8 * 10),
        (Grouped, 8 * 3 * 9 * 4 * 5),
        (Attention, 2 * 2 * 80 * 10 * 3),
        (Sampling, 4 * 6 * 5 * 7),
        (Normalization, 0),
    ],
)
def test_every_operation_is_counted_by_its_definition(module, macs):
    class Stem(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.rest = module()

        def forward(self, x):
            return self.rest(self.stem(x))

    stem, rest, total = measure(Stem(), (8, 10))

    assert (stem.name, stem.macs) == ('stem', 3 * 6 * 80)
    assert (rest.name, rest.macs) == ('rest', macs)
    assert total.macs == stem.macs + rest.macs
    assert total.parameters == stem.parameters + rest.parameters


class AttentionOfMap(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 1)
        self.attention = attention

    def forward(self, x):
        return self.attention(self.stem(x))


def test_neighborhood_attention_counts_its_neighbors_alone():
    layer = NeighborhoodAttention2d(16, num_heads=2, kernel_size=3)

    attention = measure(AttentionOfMap(layer), (9, 11))[1]

    assert attention.macs == 9 * 11 * (4 * 16 * 16 + 2 * 9 * 16)


def test_routed_attention_counts_the_routed_regions_alone():
    layer = BiLevelRoutingAttention(16, 2, topk=3, regions_per_side=4, lepe_kernel=0)

    attention = measure(AttentionOfMap(layer), (8, 8))[1]

    routing = 16 * 16 * 16
    assert attention.macs == 64 * (4 * 16 * 16 + 2 * 3 * 4 * 16) + routing


def test_counting_leaves_the_model_and_the_ops_as_they_were():
    layer = AttentionOfMap(NeighborhoodAttention2d(16, num_heads=2, kernel_size=3))
    layer.train()

    measure(layer, (9, 11))

    assert {x.device.type for x in layer.parameters()} == {'cpu'}
    assert layer.training
    assert not layer.stem._forward_hooks
    module = __import__(NeighborhoodAttention2d.__module__, fromlist=['_'])
    assert module.neighborhood_attention is neighborhood_attention


def test_a_detector_is_run_up_to_its_neck():
    model = build_model(
        read_config(str(CONFIGS / 'dino_biformer-nano_1xb4-4e_digits.py'))
    )

    parts = {part.name: part for part in measure(model, (128, 128))}

    assert parts['total'].macs == parts['backbone'].macs + parts['neck'].macs
    assert parts['encoder'].macs is None
    assert parts['total'].parameters == 4_720_298
    stages = [parts[f'backbone.stage {i}'].macs for i in (1, 2, 3, 4)]
    assert sum(stages) == parts['backbone'].macs


def test_a_segmentor_is_run_with_its_head():
    model = build_model(
        read_config(str(CONFIGS / 'fpn_biformer-nano_1xb8-1600i_digits.py'))
    )

    parts = {part.name: part for part in measure(model, (128, 128))}

    assert parts['decode_head'].macs > 0
    assert parts['total'].macs == sum(
        parts[name].macs for name in ('backbone', 'neck', 'decode_head')
    )


def test_counting_a_run_equals_measuring_without_numbers():
    backbone, x = DAT('nano').eval(), torch.rand(1, 3, 64, 64)

    assert count(lambda: backbone(x)) == measure(backbone, (64, 64))[-1].macs
