"""Multi-scale deformable attention equals its formula, by every backend."""

import pytest
import torch

from mmsparse.ops import _tuning, multi_scale_deformable_attention
from mmsparse.ops.pyramid import level_layout

CASES = {  # B, queries, heads, D, points, sizes
    'three-levels': (2, 4, 2, 3, 2, ((5, 3), (1, 4), (2, 2))),
    'one-cell': (1, 1, 1, 1, 1, ((1, 1),)),
    'many-points': (1, 3, 2, 2, 7, ((3, 4), (1, 1))),
}


def random_inputs(B, Q, heads, D, points, sizes, dtype=torch.float64):
    """Return values, locations of which some are beyond the levels, and weights."""
    options = dict(dtype=torch.promote_types(dtype, torch.float32))
    cells = sum(height * width for height, width in sizes)
    grid = (B, Q, heads, len(sizes), points)
    value = torch.randn(B, cells, heads, D, dtype=dtype)
    locations = 0.5 + 0.5 * torch.randn(*grid, 2, **options)
    weights = torch.rand(*grid, **options).flatten(3).softmax(-1).view(grid)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def by_formula(value, points, weights, sizes):
    """Sum over all cells by how near they are: 1 at a location, 0 from a cell on."""
    out, start = 0, 0
    for i, (height, width) in enumerate(sizes):
        rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
        x, y = points[:, :, :, i].unsqueeze(-2).unbind(-1)  # (B, Q, heads, points, 1)
        near_y = (1 - (y * height - rows).abs()).relu()
        near_x = (1 - (x * width - columns).abs()).relu()
        near = near_y[..., :, None] * near_x[..., None, :]
        near = (near.flatten(-2) * weights[:, :, :, i, :, None]).sum(-2)
        cells = value[:, start : start + height * width]
        out = out + torch.einsum('bqhn,bnhd->bqhd', near, cells)
        start += height * width
    return out


def gradients(out, inputs):
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return torch.autograd.grad(out, inputs, cotangent)


@pytest.mark.parametrize('backend', ['auto', 'reference', 'gathered'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_formula_in_value_and_gradient(case, backend):
    inputs, sizes = random_inputs(*case), case[-1]
    expected = by_formula(*inputs, sizes)

    actual = multi_scale_deformable_attention(*inputs, sizes, backend)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


@pytest.mark.parametrize('backend', ['reference', 'gathered'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_values_but_no_locations(dtype, backend):
    value, points, weights = random_inputs(1, 9, 1, 2, 4, ((1, 1000),), dtype)
    exact = multi_scale_deformable_attention(
        value.double(), points, weights, [(1, 1000)]
    )

    out = multi_scale_deformable_attention(value, points, weights, [(1, 1000)], backend)
    grads = gradients(out, (value, points))

    assert out.dtype == dtype
    assert [x.dtype for x in grads] == [dtype, torch.float32]
    # Half a unit in the last place; a location would be off by cells.
    torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize('backend', ['reference', 'gathered'])
def test_sizes_may_be_a_tensor(backend):
    inputs, sizes = random_inputs(*CASES['three-levels']), CASES['three-levels'][-1]

    torch.testing.assert_close(
        multi_scale_deformable_attention(*inputs, torch.tensor(sizes), backend),
        multi_scale_deformable_attention(*inputs, sizes, backend),
    )


def test_the_layout_of_levels_is_built_once():
    device = torch.device('cpu')

    shapes, starts = level_layout([(5, 3), (1, 4), (2, 2)], device)

    assert starts.tolist() == [0, 15, 19]
    again = level_layout(((5, 3), torch.Size([1, 4]), (2, 2)), device)
    assert again[0] is shapes and again[1] is starts
    torch.testing.assert_close(level_layout(shapes.long(), device)[1], starts.long())


def test_auto_takes_what_was_measured_as_the_fastest(monkeypatch):
    inputs, sizes = random_inputs(*CASES['three-levels']), CASES['three-levels'][-1]
    row = dict(
        sizes=dict(queries=4, samples=6, head_dim=3),
        dtype='float64',
        training=True,
        milliseconds=dict(reference=2.0, gathered=1.0, triton=0.5),
    )
    measured = {'multi_scale_deformable_attention': [row]}
    monkeypatch.setattr(_tuning, 'measurements', lambda device: measured)

    actual = multi_scale_deformable_attention(*inputs, sizes)

    gathered = multi_scale_deformable_attention(*inputs, sizes, 'gathered')
    assert actual.equal(gathered)
    assert not actual.equal(
        multi_scale_deformable_attention(*inputs, sizes, 'reference')
    )


@pytest.mark.parametrize('backend', ['reference', 'gathered'])
def test_compiles_into_one_graph(backend):
    torch.compiler.reset()
    inputs, sizes = random_inputs(*CASES['three-levels']), CASES['three-levels'][-1]
    compiled = torch.compile(
        multi_scale_deformable_attention, fullgraph=True, backend='eager'
    )

    torch.testing.assert_close(
        compiled(*inputs, sizes, backend),
        multi_scale_deformable_attention(*inputs, sizes, backend),
    )


@pytest.mark.parametrize(
    ('sizes', 'backend', 'message'),
    [
        ([(5, 3)], 'auto', 'one for each of the 3 levels of points; got 1'),
        ([(5, 3), (1, 4), (2, 3)], 'auto', r'23 cells.*\(2, 3\)\], which have 25'),
        ([(5, 3), (1, 4), (2, 2)], 'mmcv', "'gathered', 'triton'.; got 'mmcv'"),
    ],
)
def test_arguments_that_do_not_fit_are_rejected(sizes, backend, message):
    inputs = random_inputs(*CASES['three-levels'])

    with pytest.raises(ValueError, match=message):
        multi_scale_deformable_attention(*inputs, sizes, backend)
