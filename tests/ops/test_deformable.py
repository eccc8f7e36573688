import itertools

import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import deformable, deformable_attention, deformable_tiled
from mmsparse.ops.attention import full_attention
from mmsparse.ops.deformable import (
    displacements,
    query_axis_v2022,
    query_axis_v2023,
    sample_features,
    sampling_locations_v2022,
    sampling_locations_v2023,
)

BACKENDS = tuple(
    name for name in deformable.BACKENDS if name != 'triton'
)  # triton_kernels/: triton
CASES = {  # B, H, W, C, Hk, Wk, heads, groups, Ty, Tx
    'groups': (2, 4, 3, 8, 3, 2, 4, 2, 9, 5),
    'one-group': (1, 4, 4, 4, 4, 4, 2, 1, 7, 7),
    'one-pixel-high': (1, 1, 5, 4, 1, 3, 2, 2, 3, 9),
    'another-table': (1, 5, 6, 4, 2, 2, 1, 1, 5, 3),
    'large-table': (1, 12, 2, 4, 2, 1, 2, 1, 23, 4),
    'one-entry': (1, 3, 2, 4, 2, 2, 2, 1, 1, 1),
}


def random_inputs(B, H, W, C, Hk, Wk, heads, groups, Ty, Tx, dtype=torch.float64):
    q = torch.randn(B, H, W, C, dtype=dtype, requires_grad=True)
    k, v = (
        torch.randn(B, Hk, Wk, C, dtype=dtype, requires_grad=True) for _ in range(2)
    )
    locations = 2.4 * torch.rand(B, groups, Hk, Wk, 2, dtype=dtype) - 1.2
    table = torch.randn(heads, Ty, Tx, dtype=dtype, requires_grad=True)
    axes = query_axis_v2023(H, locations), query_axis_v2023(W, locations)
    return q, k, v, locations.requires_grad_(), table, axes


def interpolate(plane, y, x):
    """Interpolate bilinearly at a fractional index; zero beyond the entries."""
    rows, columns = (torch.arange(n, dtype=plane.dtype) for n in plane.shape)
    near_y, near_x = (1 - (y - rows).abs()).relu(), (1 - (x - columns).abs()).relu()
    return near_y @ plane @ near_x


def loop_oracle(q, k, v, locations, table, axes):
    """Attend with one query, head and key at a time."""
    (B, H, W, C), (heads, Ty, Tx) = q.shape, table.shape
    groups, Hk, Wk = locations.shape[1:4]
    out = torch.zeros_like(q)
    channels = torch.arange(C).view(heads, -1)
    for b, h, y, x in itertools.product(*map(range, (B, heads, H, W))):
        own, logits = channels[h], []
        for i, j in itertools.product(range(Hk), range(Wk)):
            py, px = locations[b, h // (heads // groups), i, j]
            dy, dx = (axes[0][y] - py) / 2, (axes[1][x] - px) / 2
            bias = interpolate(
                table[h], (dy + 1) / 2 * (Ty - 1), (dx + 1) / 2 * (Tx - 1)
            )
            dot = q[b, y, x, own] @ k[b, i, j, own] * (C // heads) ** -0.5
            logits.append(dot + bias)
        weights = torch.stack(logits).softmax(0)
        values = v[b].flatten(0, 1)[:, own]
        out = out.index_put(
            tuple(torch.tensor(n) for n in (b, y, x)) + (own,), weights @ values
        )
    return out


@pytest.fixture(scope='module', params=CASES.values(), ids=CASES)
def oracle_case(request):
    """Inputs, oracle and gradients of a case: the loops are slow."""
    *tensors, axes = random_inputs(*request.param)
    expected = loop_oracle(*tensors, axes)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, tensors, cotangent)
    return tensors, axes, expected, cotangent, gradients


@pytest.mark.parametrize('limit', [1, None], ids=['small chunks', 'default'])
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_the_oracle_in_value_and_gradient(
    oracle_case, backend, limit, monkeypatch, on_cpu
):
    tensors, axes, expected, cotangent, gradients = oracle_case
    on_cpu(chunk_logits=1)
    if limit is not None:  # 'auto' attends in chunks, and tiles have one column
        on_cpu(chunked_min_logits=limit, tile_logits=limit)
        monkeypatch.setattr(deformable_tiled, 'COLUMN_MULTIPLE', limit)

    actual = deformable_attention(*tensors, axes, backend)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent), gradients
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    *tensors, axes = random_inputs(1, 3, 2, 4, 2, 2, 2, 2, 5, 3)

    assert gradcheck(
        lambda *args: deformable_attention(*args, axes, backend=backend), tensors
    )


def test_tiles_have_the_slopes_of_the_reference_at_the_entries_of_the_table():
    """There the slope is that to the right."""
    *tensors, axes = random_inputs(1, 5, 4, 4, 5, 4, 2, 1, 9, 7)
    pixels = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
    tensors[3] = pixels[None, None].requires_grad_()
    cotangent = torch.randn_like(tensors[0])

    actual, expected = (
        torch.autograd.grad(deformable_attention(*tensors, axes, x), tensors, cotangent)
        for x in ('tiled', 'reference')
    )

    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('backend', BACKENDS)
def test_locations_that_are_nan_give_nan(backend):
    *tensors, axes = random_inputs(1, 5, 4, 4, 2, 2, 2, 1, 9, 7)
    locations = torch.full_like(tensors[3], torch.nan, requires_grad=True)

    out = deformable_attention(*tensors[:3], locations, tensors[4], axes, backend)
    out.sum().backward()

    assert out.isnan().all()


def test_many_logits_are_tiled_and_saves_none(on_cpu):
    *tensors, axes = random_inputs(1, 6, 5, 8, 3, 4, 2, 1, 5, 5, torch.float32)
    expected = deformable_attention(*tensors, axes)
    saved = []
    on_cpu(tiled_min_logits=6 * 5 * 3 * 4)

    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        actual = deformable_attention(*tensors, axes)

    torch.testing.assert_close(actual, expected)
    assert (
        type(actual.grad_fn.next_functions[0][0]).__name__ == '_TiledAttentionBackward'
    )
    assert max(x.numel() for x in saved) == 6 * 5 * 8


def test_a_table_of_zeros_gives_full_attention():
    q, k, v, locations, table, axes = random_inputs(2, 3, 4, 8, 3, 4, 2, 1, 5, 7)

    out = deformable_attention(q, k, v, locations, torch.zeros_like(table), axes)

    torch.testing.assert_close(out, full_attention(q, k, v, num_heads=2))


def test_keys_at_pixel_centers_have_the_entries_of_the_table_as_bias():
    """One step between query and key is one entry, and none is the center."""
    H, W, heads = 3, 4, 2
    q, k, v, _, table, axes = random_inputs(1, H, W, 8, H, W, heads, 1, 5, 7)
    locations = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)[None, None]
    y, x = torch.arange(H), torch.arange(W)
    bias = table[
        :,
        (y[:, None] - y + H - 1)[:, None, :, None],
        (x[:, None] - x + W - 1)[None, :, None, :],
    ].reshape(heads, H * W, H * W)

    torch.testing.assert_close(
        deformable_attention(q, k, v, locations, table, axes),
        full_attention(q, k, v, heads, bias),
    )


def test_displacements_are_halved_from_key_to_query():
    locations = torch.tensor([[[[[0.5, -1.0]]]]])
    axes = torch.tensor([-1.0, 1.0]), torch.tensor([0.0])

    displacement = displacements(locations, axes)

    assert displacement[0, 0, :, 0].tolist() == [[-0.75, 0.5], [0.25, 0.5]]


@pytest.mark.parametrize('groups', [1, 2])
def test_sampling_interpolates_between_pixels_and_is_zero_beyond_the_feature_map(
    groups,
):
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    locations = 2.6 * torch.rand(2, groups, 2, 3, 2, dtype=torch.float64) - 1.3

    sampled = sample_features(x, locations)

    assert sampled.shape == (2, 4, 2, 3)
    for b, c, i, j in itertools.product(range(2), range(4), range(2), range(3)):
        y, x_ = locations[b, c // (4 // groups), i, j]
        expected = interpolate(x[b, c], (y + 1) / 2 * (5 - 1), (x_ + 1) / 2 * (3 - 1))
        torch.testing.assert_close(sampled[b, c, i, j], expected)


def test_sampling_passes_gradients_to_features_and_locations():
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    locations = 2 * torch.rand(1, 2, 2, 2, 2, dtype=torch.float64) - 1

    assert gradcheck(sample_features, (x, locations.requires_grad_()))


LOCATIONS = {  # of key j of n along an axis with offset o
    ('v2022', 2): lambda j, o, n: (2 * j + 1) / n - 1 + o.tanh() * 2 / n,
    ('v2022', 0): lambda j, o, n: (2 * j + 1) / n - 1 + o,
    ('v2022', -1): lambda j, o, n: ((2 * j + 1) / n - 1 + o).tanh(),
    ('v2023', 2): lambda j, o, n: (2 * j + 1) / (n - 1) - 1 + o.tanh() * 2 / (n - 1),
    ('v2023', 0): lambda j, o, n: (2 * j + 1) / (n - 1) - 1 + 0 * o,
    ('v2023', -1): lambda j, o, n: ((2 * j + 1) / (n - 1) - 1 + o).clamp(-1, 1),
}


@pytest.mark.parametrize(('formulation', 'offset_range'), LOCATIONS, ids=str)
def test_sampling_locations_are_those_of_the_formulation(formulation, offset_range):
    add_offsets = {
        'v2022': sampling_locations_v2022,
        'v2023': sampling_locations_v2023,
    }[formulation]
    offsets = torch.randn(2, 3, 4, 5, 2)

    locations = add_offsets(offsets, offset_range)

    expected = torch.empty_like(offsets)
    for axis, n in enumerate((4, 5)):
        j = torch.arange(n).view((n, 1) if axis == 0 else n)
        axis_offsets = offsets[..., axis]
        expected[..., axis] = LOCATIONS[formulation, offset_range](j, axis_offsets, n)
    torch.testing.assert_close(locations, expected)


@pytest.mark.parametrize('offset_range', [2, 0, -1])
@pytest.mark.parametrize(
    'add_offsets', [sampling_locations_v2022, sampling_locations_v2023]
)
def test_a_single_key_starts_from_the_center(add_offsets, offset_range):
    locations = add_offsets(torch.zeros(1, 1, 1, 1, 2), offset_range)

    assert locations.flatten().tolist() == [0, 0]


@pytest.mark.parametrize(
    'add_offsets', [sampling_locations_v2022, sampling_locations_v2023]
)
def test_locations_are_float32_at_least(add_offsets):
    offsets = torch.zeros(1, 1, 200, 300, 2)

    assert add_offsets(offsets.double(), -1).dtype == torch.float64
    torch.testing.assert_close(
        add_offsets(offsets.bfloat16(), -1), add_offsets(offsets, -1), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ('query_axis', 'expected'),
    [
        (query_axis_v2022, [-0.75, -0.25, 0.25, 0.75]),
        (query_axis_v2023, [-1, -1 / 3, 1 / 3, 1]),
    ],
    ids=['v2022', 'v2023'],
)
def test_queries_are_evenly_spaced(query_axis, expected):
    like = torch.zeros(1)

    torch.testing.assert_close(query_axis(4, like), torch.tensor(expected))
    assert query_axis(1, like).tolist() == [0]


@pytest.mark.parametrize('backend', [x for x in BACKENDS if x != 'math'])
def test_bfloat16_features_with_float32_locations_stay_near_float32(backend):
    q, k, v, locations, table, axes = random_inputs(
        2, 7, 9, 8, 3, 2, 4, 2, 13, 17, torch.float32
    )
    exact = deformable_attention(q, k, v, locations, table, axes)

    rounded = deformable_attention(
        q.bfloat16(), k.bfloat16(), v.bfloat16(), locations, table, axes, backend
    )

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_groups_that_do_not_divide_the_heads_are_rejected():
    inputs = random_inputs(1, 2, 2, 6, 2, 2, 3, 2, 3, 3)

    with pytest.raises(ValueError, match='of heads of the table, 3; got 2 groups'):
        deformable_attention(*inputs)


@pytest.mark.parametrize('backend', BACKENDS)
def test_heads_that_do_not_divide_the_channels_are_rejected(backend):
    inputs = random_inputs(1, 2, 2, 8, 2, 2, 3, 1, 3, 3)

    with pytest.raises(
        ValueError, match='num_heads must divide the channels, 8; got 3'
    ):
        deformable_attention(*inputs, backend=backend)


def test_math_rejects_features_of_another_dtype_than_the_bias():
    q, k, v, *others = random_inputs(1, 2, 2, 4, 2, 2, 2, 1, 3, 3, torch.float32)
    rounded = [x.bfloat16() for x in (q, k, v)]

    with pytest.raises(ValueError, match="'math' needs q and bias of one dtype"):
        deformable_attention(*rounded, *others, backend='math')


def test_an_unknown_backend_is_rejected():
    inputs = random_inputs(1, 2, 2, 4, 2, 2, 2, 1, 3, 3)

    with pytest.raises(ValueError, match="'chunked', 'tiled'.*got 'fast'"):
        deformable_attention(*inputs, backend='fast')
