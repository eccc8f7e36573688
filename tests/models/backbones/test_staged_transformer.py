import re

import pytest
import torch
from torch import nn

from mmsparse import create_backbone, create_model
from mmsparse.models import (
    DeformableAttention2d,
    FullAttention2d,
    MultiScaleDeformableAttention2d,
    StagedTransformer,
    WindowAttention2d,
)
from mmsparse.registry import MODELS

WINDOWS = dict(type='mmsparse.WindowAttention2d', window_size=4)
FULL = dict(type='mmsparse.FullAttention2d')
# A layer of every type that fits nano, and arguments that differ from the defaults.
LAYERS = {
    'WindowAttention2d': dict(window_size=4, shift=2),
    'NeighborhoodAttention2d': dict(kernel_size=3),
    'FullAttention2d': {},
    'ShuntedSelfAttention': dict(num_heads=2),
    'DeformableAttention2d': dict(num_groups=1),
    'MultiScaleDeformableAttention2d': dict(num_points=4),
    'BiLevelRoutingAttention': dict(topk=2, regions_per_side=2),
    'AgentAttention2d': dict(num_agents=4),
    'AxialAttention2d': {},
    'CrossShapedAttention2d': dict(num_heads=2, stripe_width=3),
    'LinearSpatialReductionAttention2d': dict(pool_size=2),
    'SpatialReductionAttention2d': {},
}


def registered_layers():
    return {
        name
        for name, layer in MODELS.module_dict.items()
        if layer.__module__.startswith('mmsparse.models.layers.')
    }


def test_every_layer_is_tried():
    assert set(LAYERS) == registered_layers()


@pytest.mark.parametrize('name', LAYERS)
def test_any_layer_runs_in_every_stage_and_learns(name):
    layer = dict(type=f'mmsparse.{name}', **LAYERS[name])
    backbone = StagedTransformer('nano', layer, (0, 1, 2, 3), 'layer')

    outs = backbone(torch.rand(1, 3, 65, 93))
    sum(out.square().mean() for out in outs).backward()

    for stage in backbone.stages:
        assert {type(block.attn).__name__ for block in stage} == {name}
    for key, parameter in backbone.named_parameters():
        assert parameter.grad.isfinite().all(), key


def test_windows_are_swin():
    swin = pytest.importorskip('timm.models.swin_transformer')
    arch = dict(embed_dims=(8, 16, 32), depths=2, num_heads=(1, 2, 4))
    own = StagedTransformer(arch, out_indices=(2,)).eval()
    sizes = dict(embed_dim=8, depths=(2, 2, 2), num_heads=(1, 2, 4), num_classes=0)
    other = swin.SwinTransformer(**sizes, global_pool='').eval()
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    renamed = {official_key(key): x for key, x in other.state_dict().items()}
    own.load_state_dict({k: x for k, x in renamed.items() if 'index' not in k})
    x = torch.rand(2, 3, 224, 224)

    torch.testing.assert_close(own(x)[0], other(x).movedim(-1, 1), rtol=1e-4, atol=1e-4)


def official_key(key):
    """The key of a tensor of timm's Swin in a StagedTransformer of three stages."""
    for pattern, new in (
        (r'^patch_embed\.proj', 'downsamples.0.0'),
        (r'^patch_embed\.norm', 'downsamples.0.1'),
        (r'^layers\.(\d+)\.downsample', r'downsamples.\1'),
        (r'^layers\.(\d+)\.blocks', r'stages.\1'),
        (r'^norm\b', 'out_norms.class2'),
    ):
        key = re.sub(pattern, new, key)
    return key


def test_has_the_number_of_parameters_of_swin_tiny():
    with torch.device('meta'):
        model = create_model('staged-tiny')

    assert sum(parameter.numel() for parameter in model.parameters()) == 28_288_354


def test_windows_are_no_larger_than_the_feature_map_and_then_not_shifted():
    backbone = StagedTransformer(dict(base='nano', img_size=64))

    found = [[(b.attn.window_size, b.attn.shift) for b in s] for s in backbone.stages]
    assert found == [[(7, 0), (7, 3)], [(7, 0), (7, 3)], [(4, 0), (4, 0)], [(2, 0)]]


def test_attention_is_by_stage_and_by_block():
    layers = [[WINDOWS, dict(WINDOWS, shift=1), FULL], FULL, WINDOWS, [FULL]]
    backbone = StagedTransformer(dict(base='nano', depths=(4, 1, 1, 1)), layers)

    found = [[type(block.attn) for block in stage] for stage in backbone.stages]
    window = WindowAttention2d
    assert found[0] == [window, window, FullAttention2d, window]
    assert [stage[0] for stage in found[1:]] == [
        FullAttention2d,
        window,
        FullAttention2d,
    ]
    assert [backbone.stages[0][i].attn.shift for i in (0, 1, 3)] == [0, 1, 0]


def test_a_layer_has_heads_and_feature_map_of_its_stage_unless_given():
    layer = dict(type=DeformableAttention2d, num_groups=1)
    backbone = StagedTransformer(
        'nano', [layer, dict(layer, num_heads=4, map_size=5), FULL, FULL]
    )

    own, given = (stage[0].attn for stage in backbone.stages[:2])
    assert own.relative_position_bias_table.shape == (1, 63, 63)
    assert given.relative_position_bias_table.shape == (4, 9, 9)
    assert [stage[0].attn.num_heads for stage in backbone.stages[2:]] == [4, 8]


def test_a_layer_keeps_its_own_initialization():
    layer = dict(type='mmsparse.MultiScaleDeformableAttention2d')
    backbone = StagedTransformer('nano', layer, out_indices=(0,))
    backbone.init_weights()

    expected = MultiScaleDeformableAttention2d(32, 1).sampling_offsets
    found = backbone.stages[0][0].attn.sampling_offsets
    assert torch.equal(found.bias, expected.bias)
    assert not found.weight.any()


def test_position_biases_have_no_weight_decay():
    exempt = StagedTransformer('nano').no_weight_decay()

    assert 'stages.0.1.attn.relative_position_bias_table' in exempt


def test_a_checkpoint_has_its_attention(tmp_path):
    layer = dict(type='mmsparse.NeighborhoodAttention2d', kernel_size=3)
    model = create_model('staged-nano', attention=layer, num_classes=3)
    cfg = f"model = dict(backbone=dict(attention={layer}, arch='nano'))"
    path = tmp_path / 'trained.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg)), path)

    backbone = create_backbone('staged-nano', path)

    assert backbone.stages[3][0].attn.kernel_size == 3


@pytest.mark.parametrize(
    ('attention', 'message'),
    [
        (
            dict(FULL, num_heads=3),
            r'stages\[0\]: .* got in_channels=32 and num_heads=3',
        ),
        (
            [FULL, FULL, FULL, dict(WINDOWS, window_size=5)],
            r'stages\[3\]: window_size must be at most 4, .* img_size; got 5',
        ),
        (
            dict(WINDOWS, dilation=4),
            r'stages\[2\]: window_size times dilation=4 must be at most 8, .* got 4',
        ),
        (
            [FULL, FULL, dict(type='mmsparse.NeighborhoodAttention2d', kernel_size=9)],
            r'attention must be .* one per stage, 4, each a config or a list',
        ),
        (
            [FULL, dict(type='mmsparse.WindowAttention'), FULL, FULL],
            r'stages\[1\]: attention must have a registered layer as its type; got '
            r"'mmsparse.WindowAttention'. Did you mean 'mmsparse.WindowAttention2d'",
        ),
        ({}, r'stages\[0\]: attention must have a registered .* got None. Did you'),
        (
            dict(WINDOWS, window=3),
            r"stages\[0\]: attention WindowAttention2d: got .* argument 'window'; its "
            'arguments are in_channels, num_heads, window_size, shift',
        ),
        (
            dict(WINDOWS, in_channels=3),
            'attention must leave in_channels to .* got in_channels=3 of WindowAtt',
        ),
        ([FULL, [], FULL, FULL], r'attention must be the config of a layer'),
        ('mmsparse.FullAttention2d', r"of a layer, .*; got 'mmsparse.FullAttention2d'"),
    ],
    ids=str,
)
def test_a_layer_that_does_not_fit_is_reported_in_one_line(attention, message):
    with pytest.raises(ValueError, match=message) as caught:
        StagedTransformer('nano', attention)

    assert '\n' not in str(caught.value)
