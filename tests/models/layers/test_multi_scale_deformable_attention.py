from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmdet.models import ResNet

from mmsparse.models import MultiScaleDeformableAttention2d
from mmsparse.models.layers import multi_scale_deformable_attention as module
from mmsparse.models.layers.multi_scale_deformable_attention import sample_and_sum


def reference(value, points, weights, sizes):
    """Sample the values of every head as feature maps, and sum them weighted."""
    outs = []
    for h in range(value.shape[2]):
        cells = value[:, :, h].transpose(1, 2).split([H * W for H, W in sizes], -1)
        sampled = [
            F.grid_sample(
                plane.unflatten(-1, size),
                2 * points[:, :, h, i] - 1,
                align_corners=False,
            )
            for i, (plane, size) in enumerate(zip(cells, sizes, strict=True))
        ]
        sampled = torch.stack(sampled, 3)  # (B, D, Q, levels, points)
        outs.append((sampled * weights[:, None, :, h]).sum((-2, -1)).transpose(1, 2))
    return torch.cat(outs, -1)


def random_layer(**arguments):
    layer = MultiScaleDeformableAttention2d(8, num_heads=2, **arguments)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


@pytest.mark.parametrize('sizes', [[(5, 3)], [(4, 7), (2, 3), (1, 1)]], ids=str)
def test_the_operator_equals_the_reference_in_value_and_gradient(sizes):
    value = torch.randn(2, sum(H * W for H, W in sizes), 2, 4, requires_grad=True)
    points = 1.4 * torch.rand(2, 7, 2, len(sizes), 6, 2) - 0.2
    weights = torch.rand(2, 7, 2, len(sizes), 6).softmax(-1).requires_grad_()
    tensors = (value, points.requires_grad_(), weights)

    expected = reference(*tensors, sizes)
    actual = sample_and_sum(*tensors, sizes)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize(
    ('compiled', 'preferred', 'dtype', 'deterministic', 'expected'),
    [
        (True, True, torch.float32, False, True),
        (True, True, torch.bfloat16, False, False),
        (True, True, torch.float32, True, False),
        (True, False, torch.float16, True, True),
        (False, True, torch.float32, False, False),
        (False, False, torch.float32, False, False),
    ],
)
def test_mmcvs_kernel_serves_float32_where_it_is_compiled(
    compiled, preferred, dtype, deterministic, expected, monkeypatch
):
    monkeypatch.setattr(module, 'has_mmcv_cuda', lambda: compiled)
    monkeypatch.setattr(module, 'is_preferred', lambda value: preferred)
    torch.use_deterministic_algorithms(deterministic)
    try:
        on_gpu = SimpleNamespace(is_cuda=True, dtype=dtype)
        assert module._prefers_mmcv(on_gpu) is expected
    finally:
        torch.use_deterministic_algorithms(False)


def test_queries_sample_around_their_cells():
    """With zero offsets every point is at the cell: only the projections remain."""
    layer, x = random_layer(num_points=3), torch.rand(2, 8, 4, 6)
    torch.nn.init.zeros_(layer.sampling_offsets.weight)
    torch.nn.init.zeros_(layer.sampling_offsets.bias)

    expected = layer.output_proj(layer.value_proj(x.permute(0, 2, 3, 1)))

    torch.testing.assert_close(layer(x), expected.permute(0, 3, 1, 2))


def test_offsets_count_pixels_as_x_and_y():
    """With all points one pixel to the right, queries sample their right neighbors."""
    layer, x = random_layer(num_points=2), torch.rand(1, 8, 4, 6)
    torch.nn.init.zeros_(layer.sampling_offsets.weight)
    layer.sampling_offsets.bias.data.copy_(torch.tensor([1.0, 0.0]).repeat(4))
    shifted = F.pad(x, (0, 1))[..., 1:].permute(0, 2, 3, 1)

    values = layer.value_proj(shifted)
    values[:, :, -1] = 0  # beyond the feature map

    torch.testing.assert_close(
        layer(x), layer.output_proj(values).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4
    )


def test_points_start_on_rays_and_weights_equal():
    layer = MultiScaleDeformableAttention2d(16, num_heads=8, num_points=4)

    rays = layer.sampling_offsets.bias.detach().view(8, 4, 2)

    torch.testing.assert_close(rays[0], torch.tensor([[k, 0.0] for k in range(1, 5)]))
    torch.testing.assert_close(
        rays[1], torch.tensor([[k, 1.0 * k] for k in range(1, 5)])
    )
    torch.testing.assert_close(rays[4], -rays[0])
    assert not layer.attention_weights.weight.any()


@pytest.mark.parametrize('size', [(7, 9), (1, 5), (1, 1)], ids=str)
def test_keeps_the_shape_and_gives_every_parameter_a_gradient(size):
    layer, x = random_layer(), torch.rand(2, 8, *size)

    out = layer(x)
    out.square().sum().backward()

    assert out.shape == x.shape
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_bfloat16_stays_near_float32():
    layer, x = random_layer(num_points=4), torch.rand(2, 8, 7, 9)
    exact = layer(x)

    with torch.autocast('cpu', torch.bfloat16):
        rounded = layer(x)

    torch.testing.assert_close(rounded.float(), exact, atol=5e-2, rtol=5e-2)


def test_is_a_plugin_of_mmdets_resnet():
    attention = dict(type='mmsparse.MultiScaleDeformableAttention2d', num_points=4)
    plugin = dict(
        cfg=attention, stages=(False, False, False, True), position='after_conv3'
    )
    backbone = ResNet(50, base_channels=8, plugins=[plugin])

    assert backbone(torch.rand(1, 3, 65, 93))[-1].shape == (1, 256, 3, 3)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(num_heads=3), 'in_channels=8 and num_heads=3'),
        (dict(num_points=0), 'num_points must be at least 1; got 0'),
    ],
)
def test_arguments_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleDeformableAttention2d(8, **arguments)


def test_compiles_into_one_graph():
    torch.compiler.reset()
    layer, x = random_layer(num_points=4), torch.rand(2, 8, 7, 9)

    compiled = torch.compile(layer, fullgraph=True, backend='eager')

    torch.testing.assert_close(compiled(x), layer(x))
