import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet
from torch.utils.checkpoint import checkpoint

from mmsparse.models import ShuntedSelfAttention
from mmsparse.models.layers.mlp import Mlp2d
from mmsparse.ops import reference_only

LAYERS = {
    'sr 8': lambda channels=8: ShuntedSelfAttention(channels, 2, sr_ratio=8),
    'sr 4': lambda: ShuntedSelfAttention(8, num_heads=4, sr_ratio=4),
    'sr 2': lambda: ShuntedSelfAttention(8, num_heads=8, sr_ratio=2),
    'sr 4, avg': lambda: ShuntedSelfAttention(8, 2, sr_ratio=4, aggregation='avg'),
    'sr 1': lambda: ShuntedSelfAttention(8, num_heads=1, sr_ratio=1),
    'sr 2, no bias': lambda: ShuntedSelfAttention(8, 2, sr_ratio=2, qkv_bias=False),
    'MLP': lambda: Mlp2d(8, 12, kernel_size=3, residual=True),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS)
def layer(request):
    return request.param()


@pytest.mark.parametrize('size', [(8, 8), (9, 15), (17, 10)], ids=str)
def test_keeps_the_shape_and_gives_every_parameter_a_gradient(layer, size):
    x = torch.rand(2, 8, *size)

    out = layer(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def value_and_gradients(run, layer, x):
    x = x.detach().requires_grad_()
    out = run(x)
    grads = torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])
    return out, grads


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('size', [(8, 8), (33, 35)], ids=str)
def test_fast_backends_equal_the_reference(layer, size, batch, on_cpu):
    on_cpu(chunk_numel=12 * 33 * 35)  # one image
    x = torch.rand(batch, 8, *size)

    fast = value_and_gradients(layer, layer, x)
    with reference_only():
        expected = value_and_gradients(layer, layer, x)

    torch.testing.assert_close(fast, expected, atol=1e-4, rtol=1e-4)


def test_composes_with_activation_checkpointing(layer):
    x = torch.rand(2, 8, 9, 15)

    def run(x):
        return checkpoint(layer, x, use_reentrant=False)

    torch.testing.assert_close(
        value_and_gradients(run, layer, x), value_and_gradients(layer, layer, x)
    )


def test_compiles_into_one_graph(layer):
    torch._dynamo.reset()
    x = torch.rand(2, 8, 33, 35)

    compiled = torch.compile(layer, fullgraph=True, backend='eager')

    torch.testing.assert_close(
        value_and_gradients(compiled, layer, x), value_and_gradients(layer, layer, x)
    )


@pytest.mark.parametrize('name', LAYERS)
def test_runs_under_autocast_with_gradients(name):
    # oneDNN with AMX computes nn.Conv2d(8, 8, kernel_size=8) wrongly in bfloat16.
    layer, channels = (LAYERS[name](16), 16) if name == 'sr 8' else (LAYERS[name](), 8)
    x = torch.rand(2, channels, 33, 35)
    exact = layer(x)

    with torch.autocast('cpu', torch.bfloat16):
        rounded, grads = value_and_gradients(layer, layer, x)

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)
    assert all(grad.isfinite().all() for grad in grads)


def test_other_images_of_the_batch_do_not_matter(layer):
    x = torch.rand(3, 8, 8, 9)

    torch.testing.assert_close(layer(x)[1:2], layer(x[1:2]))


def test_memory_format_does_not_matter(layer):
    x = torch.rand(2, 8, 9, 15)

    torch.testing.assert_close(
        layer(x.contiguous(memory_format=torch.channels_last)), layer(x)
    )


def test_bfloat16_stays_near_float32(layer):
    x = torch.rand(2, 8, 9, 15)
    exact = layer(x)

    rounded = layer.bfloat16()(x.bfloat16())

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def oracle(layer, x):
    """The equations of the paper, for one image."""
    C, H, W = x.shape
    width, heads = C // layer.num_heads, layer.num_heads // 2
    q = torch.einsum('oc,chw->ohw', layer.q.weight, x) + layer.q.bias[:, None, None]
    halves = []
    for g, (group, r) in enumerate(
        [(layer.coarse, layer.sr_ratio), (layer.fine, layer.sr_ratio // 2)]
    ):
        tokens = torch.zeros(C, H // r, W // r, dtype=x.dtype)
        for i in range(H // r):
            for j in range(W // r):
                patch = x[:, i * r : (i + 1) * r, j * r : (j + 1) * r]
                token = (group.reduce.weight * patch).sum((1, 2, 3)) + group.reduce.bias
                variance, mean = torch.var_mean(token, unbiased=False)
                token = (token - mean) / (variance + 1e-5).sqrt()
                tokens[:, i, j] = token * group.norm.weight + group.norm.bias
        tokens = 0.5 * tokens * (1 + torch.erf(tokens / math.sqrt(2)))
        kv = torch.einsum('oc,chw->ohw', group.kv.weight, tokens)
        k, v = (kv + group.kv.bias[:, None, None]).chunk(2)
        kernel = group.lepe.weight
        v = v + F.conv2d(v[None], kernel, group.lepe.bias, padding=1, groups=C // 2)[0]
        half = q.chunk(2)[g]
        logits = torch.einsum(
            'hdxy,hdij->hxyij', *(x.unflatten(0, (heads, width)) for x in (half, k))
        )
        weights = (logits / math.sqrt(width)).flatten(3).softmax(-1)
        values = v.unflatten(0, (heads, width)).flatten(2)
        out = torch.einsum('hxyk,hdk->hdxy', weights, values)
        halves.append(out.flatten(0, 1))
    out = torch.einsum('oc,chw->ohw', layer.proj.weight, torch.cat(halves))
    return out + layer.proj.bias[:, None, None]


@pytest.mark.parametrize('size', [(8, 16), (9, 15)], ids=str)
@pytest.mark.parametrize('name', ['sr 8', 'sr 4', 'sr 2'])
def test_equals_the_equations_of_the_paper(name, size):
    layer = LAYERS[name]().double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 8, *size, dtype=torch.float64)

    out = layer(x)

    expected = torch.stack([oracle(layer, one) for one in x])
    torch.testing.assert_close(out, expected)


def test_an_average_is_a_convolution_with_equal_weights():
    average, convolution = LAYERS['sr 4, avg'](), ShuntedSelfAttention(8, 2, sr_ratio=4)
    for name, ratio in (('coarse', 4), ('fine', 2)):
        conv = getattr(convolution, name).reduce
        conv.weight.data = (
            torch.eye(8)[..., None, None].expand_as(conv.weight) / ratio**2
        )
        conv.bias.data.zero_()
    mismatch = convolution.load_state_dict(average.state_dict(), strict=False)
    x = torch.rand(2, 8, 9, 15)

    assert all('.reduce.' in key for key in mismatch.missing_keys)
    torch.testing.assert_close(average(x), convolution(x))


def test_a_maximum_is_the_average_of_patches_of_their_maximum():
    average, maximum = (
        ShuntedSelfAttention(8, 2, sr_ratio=4, aggregation=x) for x in ('avg', 'max')
    )
    maximum.load_state_dict(average.state_dict())
    x = torch.randn(2, 8, 8, 12)
    filled = F.interpolate(F.max_pool2d(x, 4), scale_factor=4)

    torch.testing.assert_close(maximum.coarse(x), average.coarse(filled))


def test_without_reduction_it_is_full_attention_plus_lepe():
    layer, x = LAYERS['sr 1'](), torch.rand(2, 8, 5, 7)
    q = layer.q(x.permute(0, 2, 3, 1)).flatten(1, 2)
    k, v = layer.kv(x.permute(0, 2, 3, 1)).chunk(2, -1)
    full = F.softmax(q @ k.flatten(1, 2).mT / 8**0.5, -1) @ v.flatten(1, 2)
    full = full.view(2, 5, 7, 8) + layer.lepe(v.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    torch.testing.assert_close(layer(x), layer.proj(full).permute(0, 3, 1, 2))


@pytest.mark.parametrize('name', ['sr 8', 'sr 4'])
def test_rows_and_columns_that_fill_no_patch_are_no_keys(name):
    layer, x = LAYERS[name](), torch.rand(1, 8, 17, 17)
    other = x.clone()
    other[..., 16] = 9.0

    torch.testing.assert_close(layer(other)[..., :16], layer(x)[..., :16])


def test_the_mlp_activates_the_sum_of_hidden_features_and_their_convolution():
    layer, x = Mlp2d(8, 12, kernel_size=3, residual=True), torch.rand(2, 8, 5, 7)
    hidden = F.conv2d(x, layer.fc1.weight[..., None, None], layer.fc1.bias)
    convolved = F.conv2d(
        hidden, layer.dwconv.weight, layer.dwconv.bias, 1, 1, groups=12
    )
    out = F.conv2d(F.gelu(hidden + convolved), layer.fc2.weight[..., None, None])

    torch.testing.assert_close(layer(x), out + layer.fc2.bias[:, None, None])


def test_is_a_plugin_of_mmdets_resnet():
    plugin = dict(
        cfg=dict(type='mmsparse.ShuntedSelfAttention'),
        stages=(False, False, True, True),
        position='after_conv3',
    )
    backbone = ResNet(50, base_channels=8, plugins=[plugin])

    outs = backbone(torch.rand(1, 3, 65, 93))

    assert [out.shape[1] for out in outs] == [32, 64, 128, 256]
    assert sum(isinstance(m, ShuntedSelfAttention) for m in backbone.modules()) == 9


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_heads=3), 'in_channels=8 and num_heads=3'),
        (dict(num_heads=0), 'in_channels=8 and num_heads=0'),
        (dict(num_heads=1), 'must be even .*; got num_heads=1 and sr_ratio=2'),
        (dict(sr_ratio=3), r'sr_ratio must be one of \(1, 2, 4, 8\); got 3'),
        (dict(sr_ratio=0), r'sr_ratio must be one of \(1, 2, 4, 8\); got 0'),
        (dict(aggregation='sum'), r"aggregation must be one of .*'max'.; got 'sum'"),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShuntedSelfAttention(8, **arguments)


def test_a_feature_map_smaller_than_the_reduction_is_rejected():
    with pytest.raises(
        ValueError, match='height and width of at least sr_ratio=4; got 9x3'
    ):
        LAYERS['sr 4']()(torch.rand(1, 8, 9, 3))
