import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet

from mmsparse.models.backbones.biformer import ConvMixer2d
from mmsparse.models.layers import BiLevelRoutingAttention, FullAttention2d

ROUTED = {
    'routed': dict(),
    'few query channels': dict(qk_channels=4),
    'no lepe': dict(lepe_kernel=0),
    'scale': dict(qk_scale=1.5),
    'no projection': dict(out_proj=False),
    'soft': dict(routing='soft'),
    'differentiable': dict(routing='differentiable'),
    'projected': dict(routing='projected', qk_channels=4),
    'avg': dict(kv_pool=('avg', 2)),
    'max': dict(kv_pool=('max', 2), routing='soft'),
    'adaptive avg': dict(kv_pool=('adaptive_avg', 2), routing='projected'),
    'adaptive max': dict(kv_pool=('adaptive_max', 1)),
    'padded tokens': dict(padding='tokens'),
    'padded tokens, soft, max': dict(
        padding='tokens', routing='differentiable', kv_pool=('max', 2)
    ),
}


def routed(**arguments):
    return BiLevelRoutingAttention(
        8, **{'num_heads': 2, 'topk': 3, 'regions_per_side': 3, **arguments}
    )


LAYERS = {
    **{name: partial(routed, **options) for name, options in ROUTED.items()},
    'full': lambda: FullAttention2d(8, num_heads=2),
    'full, of values': lambda: FullAttention2d(8, num_heads=2, lepe_source='values'),
    'full, bias': lambda: FullAttention2d(8, num_heads=2, qkv_bias=True),
    'convolutions': lambda: ConvMixer2d(8),
}


def oracle(layer, x):
    """Attend region by region, on slices of the feature map."""
    side = layer.regions_per_side
    x = x.permute(0, 2, 3, 1)
    height, width = x.shape[1:3]
    if layer.padding == 'input':
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    h, w = max(x.shape[1] // side, 1), max(x.shape[2] // side, 1)
    q, k, v = layer.qkv(x).split(layer.split, -1)
    images = zip(q, k, v, strict=True)
    out = torch.stack([attend_image(layer, *image, h, w) for image in images])
    if layer.lepe is not None:
        out = out + layer.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return layer.proj(out)[:, :height, :width].permute(0, 3, 1, 2)


def attend_image(layer, q, k, v, h, w):
    boxes = [
        (slice(top, top + h), slice(left, left + w))  # shorter at the border
        for top in range(0, q.shape[0], h)
        for left in range(0, q.shape[1], w)
    ]
    query, key = (torch.stack([x[box].mean((0, 1)) for box in boxes]) for x in (q, k))
    if layer.routing in ('hard', 'soft'):
        query, key = query.detach(), key.detach()
    if layer.routing == 'projected':
        query, key = layer.router(query), layer.router(key)
    logits = layer.scale * query @ key.T
    out = torch.zeros_like(v)
    for i, box in enumerate(boxes):
        best, routes = logits[i].topk(min(layer.topk, len(boxes)))
        factors = torch.ones_like(best) if layer.routing == 'hard' else best.softmax(0)
        selected = list(zip(factors, routes, strict=True))
        keys, values = (
            torch.cat(
                [f * region_tokens(layer, x[boxes[j]], h, w) for f, j in selected]
            )
            for x in (k, v)
        )
        keys, values = (x.chunk(layer.num_heads, -1) for x in (keys, values))
        queries = q[box].flatten(0, 1).chunk(layer.num_heads, -1)
        heads = [
            (layer.scale * queries[n] @ keys[n].T).softmax(-1) @ values[n]
            for n in range(layer.num_heads)
        ]
        out[box] = torch.cat(heads, -1).view_as(out[box])
    return out


def region_tokens(layer, region, h, w):
    """Fill a region with zeros to h x w and pool it, to (L', C)."""
    region = F.pad(region, (0, 0, 0, w - region.shape[1], 0, h - region.shape[0]))
    region = region.permute(2, 0, 1)[None]
    if layer.kv_pool is not None:
        kind, n = layer.kv_pool
        window = (min(n, h), min(n, w))
        region = {
            'avg': lambda x: F.avg_pool2d(x, window),
            'max': lambda x: F.max_pool2d(x, window),
            'adaptive_avg': lambda x: F.adaptive_avg_pool2d(x, n),
            'adaptive_max': lambda x: F.adaptive_max_pool2d(x, n),
        }[kind](region)
    return region[0].flatten(1).T


@pytest.mark.parametrize('size', [(9, 12), (7, 10), (2, 5)], ids=str)
@pytest.mark.parametrize('options', ROUTED.values(), ids=ROUTED)
def test_equals_attention_region_by_region_in_value_and_gradient(options, size):
    layer, x = routed(**options).double(), torch.randn(1, 8, *size).double()
    cotangent, results = torch.randn_like(x), []
    for attend in (layer, lambda x: oracle(layer, x)):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        out = attend(given)
        (out * cotangent).sum().backward()
        results.append((out, given.grad, *(p.grad for p in layer.parameters())))

    torch.testing.assert_close(*results)


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
def test_other_images_of_the_batch_do_not_matter(build):
    layer, x = build(), torch.rand(3, 8, 7, 9)

    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


@pytest.mark.parametrize('padding', ['input', 'tokens'])
def test_all_regions_routed_equals_full_attention(padding):
    layer = routed(topk=9, padding=padding)
    full = FullAttention2d(
        8, num_heads=2, qkv_bias=True, qk_scale=8**-0.5, lepe_source='values'
    )
    full.load_state_dict(layer.state_dict())
    x = torch.rand(2, 8, 6, 9)

    torch.testing.assert_close(layer(x), full(x))


def test_padded_tokens_add_exp_0_to_every_sum():
    # 5x5 in regions of 2x2: 9 regions of 36 tokens, 11 of them padding.
    layer = routed(num_heads=1, topk=9, regions_per_side=2, padding='tokens')
    layer.lepe = None
    x = torch.rand(1, 8, 5, 5)
    q, k, v = layer.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
    exps = (8**-0.5 * q @ k.transpose(1, 2)).exp()

    expected = layer.proj(exps @ v / (exps.sum(-1, keepdim=True) + 11))

    torch.testing.assert_close(layer(x), expected.transpose(1, 2).view_as(x))


def test_paddings_differ_only_where_the_regions_do_not_divide_the_feature_map():
    input_padded, tokens_padded = routed(), routed(padding='tokens')
    tokens_padded.load_state_dict(input_padded.state_dict())
    even, odd = torch.rand(1, 8, 9, 12), torch.rand(1, 8, 9, 13)

    torch.testing.assert_close(input_padded(even), tokens_padded(even))
    assert not torch.allclose(input_padded(odd), tokens_padded(odd), atol=1e-3)


def test_the_lepe_is_of_the_input_or_of_the_values():
    of_input = FullAttention2d(8, num_heads=2)
    of_values = copy.deepcopy(of_input)
    of_values.lepe_source = 'values'
    x = torch.rand(1, 8, 5, 7)
    values = of_input.qkv.weight[16:] @ x.flatten(2)
    lepes = [of_input.lepe(s.view_as(x)).permute(0, 2, 3, 1) for s in (values, x)]

    difference = of_values(x) - of_input(x)

    expected = (lepes[0] - lepes[1]) @ of_input.proj.weight.T
    torch.testing.assert_close(
        difference, expected.permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize('build', LAYERS.values(), ids=LAYERS)
def test_runs_under_autocast(build):
    layer, x = build(), torch.rand(1, 8, 7, 9)

    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)

    # Rounding may change a route: some values differ, but few.
    similarity = torch.cosine_similarity(out.float().flatten(), layer(x).flatten(), 0)
    assert similarity > 0.98


def test_padding_of_the_input_has_the_bias_and_is_attended():
    layer = BiLevelRoutingAttention(4, num_heads=1, topk=4, regions_per_side=2)
    x = torch.rand(1, 4, 3, 3)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))

    torch.testing.assert_close(layer(x), layer(padded)[..., :3, :3])


@pytest.mark.parametrize('layer', [BiLevelRoutingAttention, FullAttention2d])
def test_is_a_plugin_of_mmdets_resnet(layer):
    attention = dict(type=f'mmsparse.{layer.__name__}', num_heads=8)
    plugin = dict(
        cfg=attention, stages=(False, False, True, True), position='after_conv3'
    )
    backbone = ResNet(50, base_channels=8, plugins=[plugin])

    outs = backbone(torch.rand(1, 3, 65, 93))

    assert [out.shape[1] for out in outs] == [32, 64, 128, 256]
    assert sum(isinstance(m, layer) for m in backbone.modules()) == 9


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_heads=3), 'in_channels=8 and num_heads=3'),
        (dict(num_heads=0), 'in_channels=8 and num_heads=0'),
        (dict(num_heads=2, qk_channels=5), 'qk_channels=5 and num_heads=2'),
        (dict(topk=10, regions_per_side=3), r'regions, 9 .*; got 10'),
        (dict(topk=0), r'regions, 49 .*; got 0'),
        (dict(regions_per_side=0), 'at least 1; got 0'),
        (dict(topk=0, padding='tokens'), 'got 0'),
        (dict(padding='zeros'), r"\['input', 'tokens'\]; got 'zeros'"),
        (dict(routing='loose'), "routing must be one of .*; got 'loose'"),
        (dict(kv_pool=('conv', 2)), r"\['adaptive_avg', .*; got \('conv', 2\)"),
        (dict(kv_pool=('avg', 0)), r"got \('avg', 0\)"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(8, **arguments)


def test_full_attention_rejects_heads_that_do_not_divide():
    with pytest.raises(ValueError, match='in_channels=8 and num_heads=3'):
        FullAttention2d(8, num_heads=3)


def test_full_attention_rejects_an_unknown_source_of_the_lepe():
    with pytest.raises(ValueError, match=r"\['input', 'values'\]; got 'keys'"):
        FullAttention2d(8, lepe_source='keys')
