"""Sampling by gathers equals torch's grid_sample, and mmcv's deformable attention."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmsparse.models import MultiScaleDeformableAttention2d
from mmsparse.models.layers.multi_scale_deformable_attention import sample_and_sum
from mmsparse.ops import multi_scale_deformable_attention
from mmsparse.ops.sampling import (
    attention_on_cells,
    current_sampler,
    gather_sample,
    grid_sample,
    opaque_gather_and_sum,
    use_sampler,
)

SIZES = [(7, 9), (1, 5), (6, 1), (1, 1), (8, 8)]
LEVELS = [(5, 7), (3, 1), (1, 4)]


def random_points(*shape, scale, dtype=torch.float64):
    """Return points around the center, some of them far outside."""
    points = scale * torch.randn(*shape, 2, dtype=dtype)
    points[:, :1] *= 1e6
    return points.requires_grad_()


def border_points(height, width):
    """Return the centers of all pixels, of their neighbors, and halfway, (x, y)."""
    axes = [
        torch.arange(-2, 2 * n + 3, dtype=torch.float64) / n - 1
        for n in (height, width)
    ]
    grid = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1)
    return grid.flip(-1)[None]


def gradients(out, inputs):
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad(out, inputs, cotangent)


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', SIZES)
def test_gathers_equal_grid_sample(size, align_corners):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    points = random_points(2, 4, 5, scale=1)

    found = gather_sample(x, points, align_corners)

    expected = F.grid_sample(x, points, align_corners=align_corners)
    torch.testing.assert_close(found, expected)
    for mine, torchs in zip(
        gradients(found, (x, points)), gradients(expected, (x, points)), strict=True
    ):
        torch.testing.assert_close(mine, torchs)


@pytest.mark.parametrize('size', SIZES)
def test_values_on_and_beyond_the_border_equal_grid_sample(size):
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    points = border_points(*size)

    found = gather_sample(x, points, align_corners=False)

    expected = F.grid_sample(x, points, align_corners=False)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    outside = ((points.abs() - 1) * points.new_tensor(size[::-1]) >= 1).any(-1)
    assert outside.any()
    assert not found.movedim(1, -1)[outside].any()  # zeros, not only small values


def test_gradients_are_those_of_the_function():
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    points = random_points(1, 2, 3, scale=0.7)

    assert gradcheck(lambda *inputs: gather_sample(*inputs, True), (x, points))


def random_attention(dtype=torch.float64):
    torch.manual_seed(0)
    batch, queries, heads, points = 2, 6, 2, 3
    cells = sum(height * width for height, width in LEVELS)
    value = torch.randn(batch, cells, heads, 4, dtype=dtype, requires_grad=True)
    grid = (batch, queries, heads, len(LEVELS), points)
    with torch.no_grad():
        locations = 0.5 + random_points(*grid, scale=0.5, dtype=dtype)
    weights = torch.rand(*grid, dtype=dtype, requires_grad=True)
    return value, locations.requires_grad_(), weights


@pytest.mark.parametrize('sampler', ['gather', 'plugin'])
def test_multi_scale_deformable_attention_equals_mmcv(sampler):
    inputs = random_attention()
    expected = sample_and_sum(*inputs, LEVELS)

    with use_sampler(sampler):
        found = sample_and_sum(*inputs, LEVELS)

    torch.testing.assert_close(found, expected)
    if sampler == 'gather':
        for mine, mmcvs in zip(
            gradients(found, inputs), gradients(expected, inputs), strict=True
        ):
            torch.testing.assert_close(mine, mmcvs)


def test_the_plugin_is_one_node():
    value, locations, weights = random_attention(torch.float32)
    shapes = torch.tensor(LEVELS, dtype=torch.int32)
    starts = torch.tensor([0, 35, 38], dtype=torch.int32)
    inputs = (value.detach(), shapes, starts, locations.detach(), weights.detach())

    torch.library.opcheck(
        opaque_gather_and_sum(), inputs, test_utils=('test_schema', 'test_faketensor')
    )


def test_a_layer_samples_as_its_context_says():
    layer = MultiScaleDeformableAttention2d(8, num_heads=2, num_points=3).eval()
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    x = torch.randn(2, 8, 5, 7)
    expected = layer(x)

    with use_sampler('gather'):
        assert current_sampler() == 'gather'
        found = layer(x)

    assert current_sampler() == 'grid_sample'
    torch.testing.assert_close(found, expected)


def test_the_sampler_changes_the_operator(monkeypatch):
    x, points = torch.randn(1, 2, 3, 4), torch.rand(1, 2, 2, 2)
    monkeypatch.delattr(F, 'grid_sample')

    with use_sampler('gather'):
        assert grid_sample(x, points, align_corners=True).shape == (1, 2, 2, 2)
    with pytest.raises(AttributeError):
        grid_sample(x, points, align_corners=True)


def test_an_unknown_sampler_raises():
    with (
        pytest.raises(ValueError, match=r"one of \('grid_sample', .*; got 'nearest'"),
        use_sampler('nearest'),
    ):
        pass


@pytest.fixture
def sampled():
    """Locations of 3 queries and 2 heads, some on corners and beyond; weights."""
    points = 1.5 * torch.rand(2, 3, 2, 3, 4, 2, dtype=torch.float64) - 0.25
    points[:, 0] = torch.tensor([2 / 7, 1 / 5])
    return points, torch.rand(2, 3, 2, 3, 4, dtype=torch.float64)


def test_attention_on_cells_is_the_derivative_of_the_outputs(sampled):
    cells = sum(height * width for height, width in LEVELS)
    value = torch.zeros(2, cells, 2, 1, dtype=torch.float64, requires_grad=True)

    multi_scale_deformable_attention(value, *sampled, LEVELS).sum().backward()

    expected = value.grad.sum((2, 3))
    torch.testing.assert_close(attention_on_cells(*sampled, LEVELS), expected)


def test_displaced_attention_is_on_the_cells_right_and_below(sampled):
    points, weights = sampled
    expected = [[0.0] * height * width for height, width in LEVELS]
    for index in torch.cartesian_prod(*map(torch.arange, weights.shape[1:])):
        query, head, level, point = index.tolist()
        height, width = LEVELS[level]
        x, y = points[0][query, head, level, point] * torch.tensor([width, height])
        for column in (int(x.floor()), int(x.floor()) + 1):
            for row in (int(y.floor()), int(y.floor()) + 1):
                share = (1 - abs(x - column)) * (1 - abs(y - row))
                if 0 <= column < width and 0 <= row < height:
                    weight = weights[0][query, head, level, point]
                    expected[level][row * width + column] += float(share * weight)

    found = attention_on_cells(points, weights, LEVELS, displaced=True)[0]

    torch.testing.assert_close(found, torch.tensor(sum(expected, [])).double())


def test_attention_inside_of_the_levels_is_kept_in_all(sampled):
    points, weights = sampled
    inside = 0.5 + 0.0 * points  # the center, at least half a cell from the border

    total = attention_on_cells(inside, weights, [(4, 4), (2, 6), (2, 2)])

    torch.testing.assert_close(total.sum(1), weights.sum((1, 2, 3, 4)))
