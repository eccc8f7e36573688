"""The layers that the papers compare with: stripes, dilation, few keys, agents."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from torch import nn

from mmsparse.models import (
    AgentAttention2d,
    AxialAttention2d,
    CrossShapedAttention2d,
    LinearSpatialReductionAttention2d,
    NeighborhoodAttention2d,
    SpatialReductionAttention2d,
    WindowAttention2d,
)
from mmsparse.ops import reference_only
from mmsparse.ops._layout import channels_first, channels_last

LAYERS = {
    'spatial reduction': lambda: SpatialReductionAttention2d(8, 2, sr_ratio=2),
    'no reduction': lambda: SpatialReductionAttention2d(8, 2, sr_ratio=1),
    'pooled': lambda: LinearSpatialReductionAttention2d(8, 2, pool_size=3),
    'cross-shaped': lambda: CrossShapedAttention2d(8, 2, stripe_width=3),
    'rows and columns': lambda: CrossShapedAttention2d(8, 4, 1, lepe_kernel=0),
    'axial': lambda: AxialAttention2d(8, 2),
    'dilated neighborhood': lambda: NeighborhoodAttention2d(8, 2, 3, dilation=2),
    'dilated windows': lambda: WindowAttention2d(8, 2, 3, shift=1, dilation=2),
    'agents': lambda: AgentAttention2d(8, 2, num_agents=4, map_size=(5, 6)),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request):
    layer = request.param()
    for parameter in layer.parameters():  # biases, too
        nn.init.normal_(parameter, std=0.3)
    return layer


def value_and_gradients(run, layer, x):
    x = x.detach().requires_grad_()
    out = run(x)
    return out, torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])


@pytest.mark.parametrize('size', [(7, 9), (2, 13), (12, 12)], ids=str)
def test_fast_backends_equal_the_reference_at_any_size(layer, size):
    x = torch.rand(2, 8, *size)

    fast = value_and_gradients(layer, layer, x)
    with reference_only():
        expected = value_and_gradients(layer, layer, x)

    assert fast[0].shape == x.shape
    torch.testing.assert_close(fast, expected, atol=1e-4, rtol=1e-4)
    assert all(gradient.isfinite().all() for gradient in fast[1])


def test_other_images_and_the_memory_format_do_not_matter(layer):
    x = torch.rand(3, 8, 7, 9)

    alone = layer(x[1:2].contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(layer(x)[1:2], alone)


def test_half_precision_and_autocast_stay_near_float32(layer):
    x = torch.rand(2, 8, 7, 9)
    exact = layer(x)

    with torch.autocast('cpu', torch.bfloat16):
        autocast, gradients = value_and_gradients(layer, layer, x)
    rounded = copy.deepcopy(layer).bfloat16()(x.bfloat16())

    for found in (autocast, rounded):
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), exact, atol=5e-2, rtol=5e-2)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('name', sorted(LAYERS.keys() - {'no reduction', 'pooled'}))
def test_compiles_into_one_graph(name):
    torch.compiler.reset()
    layer = LAYERS[name]()
    x = torch.rand(2, 8, 8, 10)

    compiled = torch.compile(layer, fullgraph=True, backend='eager')

    torch.testing.assert_close(
        value_and_gradients(compiled, layer, x), value_and_gradients(layer, layer, x)
    )


def test_gradients_of_single_images_by_torch_func(layer):
    x = torch.rand(3, 8, 7, 9)

    together = torch.func.vmap(lambda x: layer(x[None])[0])(x)

    torch.testing.assert_close(together, layer(x))


def test_is_a_plugin_of_mmdets_resnet():
    plugins = [
        dict(cfg=dict(type=f'mmsparse.{name}'), position='after_conv3')
        for name in (
            'AgentAttention2d',
            'AxialAttention2d',
            'CrossShapedAttention2d',
            'LinearSpatialReductionAttention2d',
            'SpatialReductionAttention2d',
        )
    ]
    for i, plugin in enumerate(plugins):
        plugin['cfg']['postfix'] = f'_{i}'
        plugin['stages'] = (False, False, False, True)
    backbone = ResNet(50, base_channels=8, plugins=plugins)

    assert backbone(torch.rand(1, 3, 64, 64))[-1].shape == (1, 256, 2, 2)


def split(x, heads):
    """(B, N, C) to (B, heads, N, D)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attention(q, k, v, heads, bias=0):
    """Dense attention of (B, N, C) to (B, M, C)."""
    q, k, v = (split(x, heads) for x in (q, k, v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def project_tokens(layer, x, name='qkv'):
    return getattr(layer, name)(channels_last(x)).flatten(1, 2)


def feature_map(layer, tokens, size):
    return channels_first(layer.proj(tokens).unflatten(1, size))


@pytest.fixture(params=[(7, 9), (12, 12), (4, 5)], ids=str)
def x(request):
    return torch.randn(2, 8, *request.param, dtype=torch.double)


def build(name):
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.4)
    return layer


def test_spatial_reduction_normalizes_the_convolution_of_every_patch(x):
    layer, (height, width) = build('spatial reduction'), x.shape[-2:]
    conv, norm = layer.reduction
    tokens = []
    for i in range(height // 2):
        for j in range(width // 2):
            patch = x[:, None, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            tokens.append((conv.weight * patch).sum((2, 3, 4)) + conv.bias)
    tokens = F.layer_norm(torch.stack(tokens, 1), (8,), norm.weight, norm.bias)
    k, v = layer.kv(tokens).chunk(2, -1)

    out = attention(project_tokens(layer, x, 'q'), k, v, 2)

    torch.testing.assert_close(layer(x), feature_map(layer, out, x.shape[-2:]))


def test_pooled_keys_are_activated_projections_of_means(x):
    layer, (height, width) = build('pooled'), x.shape[-2:]
    conv, norm = layer.reduction[1:3]
    means = []
    for i in range(3):
        rows = slice(i * height // 3, math.ceil((i + 1) * height / 3))
        for j in range(3):
            columns = slice(j * width // 3, math.ceil((j + 1) * width / 3))
            means.append(x[..., rows, columns].mean((2, 3)))
    tokens = F.linear(torch.stack(means, 1), conv.weight[..., 0, 0], conv.bias)
    tokens = F.gelu(F.layer_norm(tokens, (8,), norm.weight, norm.bias))
    k, v = layer.kv(tokens).chunk(2, -1)

    out = attention(project_tokens(layer, x, 'q'), k, v, 2)

    torch.testing.assert_close(layer(x), feature_map(layer, out, x.shape[-2:]))


def test_stripes_have_heads_and_a_convolution_each(x):
    layer, (height, width) = build('cross-shaped'), x.shape[-2:]
    q, k, v = (
        y.unflatten(1, (height, width)) for y in project_tokens(layer, x).chunk(3, -1)
    )
    expected = torch.zeros_like(q)
    for first in range(0, max(height, width), 3):
        own = slice(first, first + 3)
        for channels, stripe, conv in (
            (slice(0, 4), (slice(None), own), layer.lepes[0]),
            (slice(4, 8), (slice(None), slice(None), own), layer.lepes[1]),
        ):
            values = v[stripe][..., channels]
            if not values.numel():
                continue
            tokens = (y[stripe][..., channels].flatten(1, 2) for y in (q, k, v))
            out = attention(*tokens, 1).unflatten(1, values.shape[1:3])
            lepe = F.conv2d(
                channels_first(values), conv.weight, conv.bias, padding=1, groups=4
            )
            expected[stripe][..., channels] = out + channels_last(lepe)

    out = feature_map(layer, expected.flatten(1, 2), (height, width))
    torch.testing.assert_close(layer(x), out)


def test_stripes_as_wide_as_the_feature_map_are_full_attention(x):
    layer = CrossShapedAttention2d(8, 2, stripe_width=12, lepe_kernel=0).double()

    out = attention(*project_tokens(layer, x).chunk(3, -1), 2)

    torch.testing.assert_close(layer(x), feature_map(layer, out, x.shape[-2:]))


def test_axial_attention_is_along_columns_and_then_along_rows(x):
    layer, size = build('axial'), x.shape[-2:]
    out = channels_last(x)
    for axis, module in ((1, layer.columns), (2, layer.rows)):
        q, k, v = module.qkv(out).chunk(3, -1)  # (B, H, W, C)
        lines = (y.movedim(axis, 2).flatten(0, 1) for y in (q, k, v))
        attended = attention(*lines, 2).unflatten(0, (2, -1)).movedim(2, axis)
        out = attended + channels_last(module.lepe(channels_first(v)))

    torch.testing.assert_close(layer(x), feature_map(layer, out.flatten(1, 2), size))


def test_axial_attention_reaches_every_token():
    layer = AxialAttention2d(8, 2)
    x = torch.rand(1, 8, 5, 6, requires_grad=True)

    layer(x)[0, :, 2, 3].sum().backward()

    assert x.grad.abs().sum(1).all()


def test_agents_are_pooled_queries_with_biases_of_both_attentions(x):
    layer, (height, width) = build('agents'), x.shape[-2:]
    q, k, v = project_tokens(layer, x).chunk(3, -1)
    agents = F.adaptive_avg_pool2d(q.mT.unflatten(2, (height, width)), 2)
    agents = agents.flatten(2).mT
    biases = []
    for bias in (layer.agent_bias, layer.query_bias):
        total = 0
        for table in (bias.block, bias.rows, bias.columns):
            size = [
                1 if count == 1 else length
                for count, length in zip(table.shape[2:], (height, width), strict=True)
            ]
            total = total + F.interpolate(table, size, mode='bilinear')
        biases.append(total.flatten(2))
    gathered = attention(agents, k, v, 2, biases[0])
    out = attention(q, agents, gathered, 2, biases[1].mT)
    out = out + layer.lepe(v.mT.unflatten(2, (height, width))).flatten(2).mT

    torch.testing.assert_close(layer(x), feature_map(layer, out, (height, width)))


def test_agent_biases_of_another_size_are_resized_when_loaded():
    one, other = (AgentAttention2d(8, 2, 4, map_size=size) for size in (6, (4, 9)))
    given = one.state_dict()

    other.load_state_dict(given)

    expected = F.interpolate(one.agent_bias.rows, (4, 1), mode='bilinear')
    torch.testing.assert_close(other.agent_bias.rows, expected, check_stride=False)
    assert given['agent_bias.rows'].shape == (2, 4, 6, 1)


@pytest.mark.parametrize('name', ['dilated neighborhood', 'dilated windows'])
def test_dilation_keeps_the_weights_and_pads_small_feature_maps(name):
    layer = LAYERS[name]()
    plain = type(layer)(8, 2, 3)
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(1, 8, 5, 6)

    padded = layer(F.pad(x, (0, 0, 0, 1)))

    torch.testing.assert_close(layer(x), padded[..., :5, :])


def test_a_neighborhood_with_dilation_is_that_of_every_phase():
    layer, plain = (NeighborhoodAttention2d(8, 2, 3, dilation=n) for n in (2, 1))
    plain.load_state_dict(layer.state_dict())
    x = torch.rand(1, 8, 9, 10)

    torch.testing.assert_close(layer(x)[..., 1::2, ::2], plain(x[..., 1::2, ::2]))


@pytest.mark.parametrize(
    ('run', 'message'),
    [
        (lambda: SpatialReductionAttention2d(8, 3), 'in_channels=8 and num_heads=3'),
        (lambda: SpatialReductionAttention2d(8, sr_ratio=0), 'sr_ratio .* got 0'),
        (
            lambda: SpatialReductionAttention2d(8, 2, 4)(torch.rand(1, 8, 9, 3)),
            'height and width of at least sr_ratio=4; got 9x3',
        ),
        (
            lambda: LinearSpatialReductionAttention2d(8, pool_size=-1),
            'pool_size must be at least 1; got -1',
        ),
        (lambda: CrossShapedAttention2d(9, 3), 'num_heads must be even.*; got 3'),
        (lambda: CrossShapedAttention2d(8, 2, 0), 'stripe_width must be .* got 0'),
        (lambda: AxialAttention2d(8, 3), 'in_channels=8 and num_heads=3'),
        (lambda: AgentAttention2d(8, num_agents=48), 'a square number.*; got 48'),
        (lambda: AgentAttention2d(8, num_agents=-4), 'a square number.*; got -4'),
        (lambda: NeighborhoodAttention2d(8, dilation=0), 'dilation must be .* got 0'),
        (lambda: WindowAttention2d(8, dilation=0), 'dilation must be .* got 0'),
    ],
)
def test_arguments_out_of_range_are_rejected(run, message):
    with pytest.raises(ValueError, match=message):
        run()
