import pytest
import torch
from mmdet.models import ResNet

from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    ConvMixer2d,
    FullAttention2d,
)

LAYERS = {
    'routed': lambda: BiLevelRoutingAttention(8, num_heads=2, regions_per_side=3),
    'routed, narrow queries': lambda: BiLevelRoutingAttention(
        8, num_heads=2, regions_per_side=3, qk_channels=4
    ),
    'routed, no local term': lambda: BiLevelRoutingAttention(
        8, num_heads=2, regions_per_side=2, local_kernel=0
    ),
    'full': lambda: FullAttention2d(8, num_heads=2),
    'convolutions': lambda: ConvMixer2d(8),
}


@pytest.mark.parametrize('size', [(7, 9), (1, 5), (12, 12)], ids=str)
@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_keeps_the_shape_and_gives_every_parameter_a_gradient(build, size):
    layer, x = build(), torch.rand(2, 8, *size)

    out = layer(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_batch_mates_do_not_matter(build):
    layer, x = build(), torch.rand(3, 8, 7, 9)

    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_all_regions_routed_equals_full_attention():
    torch.manual_seed(0)
    routed = BiLevelRoutingAttention(
        8, num_heads=2, topk=9, regions_per_side=3, local_kernel=0
    )
    full = FullAttention2d(8, num_heads=2, local_kernel=0)
    # Full attention scales by the width of a head and has no bias in its projection.
    torch.nn.init.zeros_(routed.qkv.bias)
    full.qkv.weight.data.copy_(routed.qkv.weight)
    full.qkv.weight.data[:8] *= (8 / 2) ** 0.5 / 8**0.5
    full.proj.load_state_dict(routed.proj.state_dict())
    x = torch.rand(2, 8, 6, 9)

    torch.testing.assert_close(routed(x), full(x))


def test_padding_holds_the_bias_and_takes_part():
    layer = BiLevelRoutingAttention(4, num_heads=1, topk=4, regions_per_side=2)
    x = torch.rand(1, 4, 3, 3)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))

    torch.testing.assert_close(layer(x), layer(padded)[..., :3, :3])


def test_stands_in_the_plugins_of_mmdets_resnet():
    attention = dict(type='mmsparse.BiLevelRoutingAttention', num_heads=8)
    plugin = dict(
        cfg=attention, stages=(False, False, True, True), position='after_conv3'
    )
    backbone = ResNet(50, base_channels=8, plugins=[plugin])

    outs = backbone(torch.rand(1, 3, 65, 93))

    assert [out.shape[1] for out in outs] == [32, 64, 128, 256]
    assert sum(isinstance(m, BiLevelRoutingAttention) for m in backbone.modules()) == 9


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_heads=3), 'in_channels=8 and num_heads=3'),
        (dict(num_heads=0), 'in_channels=8 and num_heads=0'),
        (dict(num_heads=2, qk_channels=5), 'qk_channels=5 and num_heads=2'),
        (dict(topk=10, regions_per_side=3), r'regions, 9 .*; got 10'),
        (dict(topk=0), r'regions, 49 .*; got 0'),
        (dict(regions_per_side=0), 'at least 1; got 0'),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(8, **arguments)


def test_full_attention_refuses_heads_that_do_not_divide():
    with pytest.raises(ValueError, match='in_channels=8 and num_heads=3'):
        FullAttention2d(8, num_heads=3)
