import itertools

import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import biased_attention, deformable, deformable_attention
from mmsparse.ops import deformable_tiled as strips
from mmsparse.ops.deformable import (
    BACKENDS,
    attend_map,
    cell_centers,
    displacements,
    pixel_centers,
    positions_v2022,
    positions_v2023,
    sample_points,
)

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
    positions = 2.4 * torch.rand(B, groups, Hk, Wk, 2, dtype=dtype) - 1.2
    table = torch.randn(heads, Ty, Tx, dtype=dtype, requires_grad=True)
    axes = pixel_centers(H, positions), pixel_centers(W, positions)
    return q, k, v, positions.requires_grad_(), table, axes


def read(plane, y, x):
    """One bilinear reading at an index between those of the entries, zero beyond."""
    rows, columns = (torch.arange(n, dtype=plane.dtype) for n in plane.shape)
    near_y, near_x = (1 - (y - rows).abs()).relu(), (1 - (x - columns).abs()).relu()
    return near_y @ plane @ near_x


def loop_oracle(q, k, v, positions, table, axes):
    """The equation, one query, head and key at a time."""
    (B, H, W, C), (heads, Ty, Tx) = q.shape, table.shape
    groups, Hk, Wk = positions.shape[1:4]
    out = torch.zeros_like(q)
    channels = torch.arange(C).view(heads, -1)
    for b, h, y, x in itertools.product(*map(range, (B, heads, H, W))):
        own, logits = channels[h], []
        for i, j in itertools.product(range(Hk), range(Wk)):
            py, px = positions[b, h // (heads // groups), i, j]
            dy, dx = (axes[0][y] - py) / 2, (axes[1][x] - px) / 2
            bias = read(table[h], (dy + 1) / 2 * (Ty - 1), (dx + 1) / 2 * (Tx - 1))
            product = q[b, y, x, own] @ k[b, i, j, own] * (C // heads) ** -0.5
            logits.append(product + bias)
        weights = torch.stack(logits).softmax(0)
        values = v[b].flatten(0, 1)[:, own]
        out = out.index_put(
            tuple(torch.tensor(n) for n in (b, y, x)) + (own,), weights @ values
        )
    return out


@pytest.mark.parametrize('whole', [1, deformable.WHOLE])
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_equation_in_value_and_gradient(case, backend, whole, monkeypatch):
    monkeypatch.setattr(deformable, 'WHOLE', whole)
    monkeypatch.setattr(deformable, 'PART', 1)
    monkeypatch.setattr(strips, 'LEAST', 1 if whole == 1 else 16)
    monkeypatch.setattr(strips, 'STRIP', whole)
    *tensors, axes = random_inputs(*case)
    expected = loop_oracle(*tensors, axes)
    actual = deformable_attention(*tensors, axes, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    *tensors, axes = random_inputs(1, 3, 2, 4, 2, 2, 2, 2, 5, 3)

    assert gradcheck(
        lambda *args: deformable_attention(*args, axes, backend=backend), tensors
    )


def test_strips_read_at_integers_as_the_definition():
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
def test_positions_that_are_no_numbers_give_no_numbers(backend):
    *tensors, axes = random_inputs(1, 5, 4, 4, 2, 2, 2, 1, 9, 7)
    positions = torch.full_like(tensors[3], torch.nan, requires_grad=True)

    out = deformable_attention(*tensors[:3], positions, tensors[4], axes, backend)
    out.sum().backward()

    assert out.isnan().all()


def test_many_logits_take_strips_and_save_none(monkeypatch):
    *tensors, axes = random_inputs(1, 6, 5, 8, 3, 4, 2, 1, 5, 5, torch.float32)
    expected = deformable_attention(*tensors, axes)
    saved = []
    monkeypatch.setattr(deformable, 'MANY', 6 * 5 * 3 * 4)

    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        actual = deformable_attention(*tensors, axes)

    torch.testing.assert_close(actual, expected)
    assert type(actual.grad_fn.next_functions[0][0]).__name__ == '_InStripsBackward'
    assert max(x.numel() for x in saved) == 6 * 5 * 8


def test_a_table_of_zeros_leaves_full_attention():
    q, k, v, positions, table, axes = random_inputs(2, 3, 4, 8, 3, 4, 2, 1, 5, 7)

    out = deformable_attention(q, k, v, positions, torch.zeros_like(table), axes)

    torch.testing.assert_close(out, attend_map(q, k, v, num_heads=2))


def test_keys_on_the_pixels_read_the_entries_of_the_table():
    """One step between query and key is one entry, and none is the center."""
    H, W, heads = 3, 4, 2
    q, k, v, _, table, axes = random_inputs(1, H, W, 8, H, W, heads, 1, 5, 7)
    positions = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)[None, None]
    y, x = torch.arange(H), torch.arange(W)
    bias = table[
        :,
        (y[:, None] - y + H - 1)[:, None, :, None],
        (x[:, None] - x + W - 1)[None, :, None, :],
    ].reshape(heads, H * W, H * W)

    torch.testing.assert_close(
        deformable_attention(q, k, v, positions, table, axes),
        attend_map(q, k, v, heads, bias),
    )


def test_attending_a_map_equals_attending_its_tokens():
    q, k, v, *_ = random_inputs(2, 3, 4, 8, 2, 3, 2, 1, 1, 1)
    tokens = (x.flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v))

    expected = biased_attention(*tokens).transpose(1, 2).reshape(2, 3, 4, 8)

    torch.testing.assert_close(attend_map(q, k, v, num_heads=2), expected)


def test_a_displacement_is_half_the_way_from_key_to_query():
    positions = torch.tensor([[[[[0.5, -1.0]]]]])
    axes = torch.tensor([-1.0, 1.0]), torch.tensor([0.0])

    way = displacements(positions, axes)

    assert way[0, 0, :, 0].tolist() == [[-0.75, 0.5], [0.25, 0.5]]


@pytest.mark.parametrize('groups', [1, 2])
def test_sampling_reads_between_the_pixels_and_zero_beyond_the_map(groups):
    x = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    positions = 2.6 * torch.rand(2, groups, 2, 3, 2, dtype=torch.float64) - 1.3

    sampled = sample_points(x, positions)

    assert sampled.shape == (2, 4, 2, 3)
    for b, c, i, j in itertools.product(range(2), range(4), range(2), range(3)):
        y, x_ = positions[b, c // (4 // groups), i, j]
        expected = read(x[b, c], (y + 1) / 2 * (5 - 1), (x_ + 1) / 2 * (3 - 1))
        torch.testing.assert_close(sampled[b, c, i, j], expected)


def test_sampling_passes_gradients_to_features_and_positions():
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    positions = 2 * torch.rand(1, 2, 2, 2, 2, dtype=torch.float64) - 1

    assert gradcheck(sample_points, (x, positions.requires_grad_()))


PLACES = {  # where the formulation, o an offset and n the keys of the axis, puts a key
    ('v2022', 2): lambda j, o, n: (2 * j + 1) / n - 1 + o.tanh() * 2 / n,
    ('v2022', 0): lambda j, o, n: (2 * j + 1) / n - 1 + o,
    ('v2022', -1): lambda j, o, n: ((2 * j + 1) / n - 1 + o).tanh(),
    ('v2023', 2): lambda j, o, n: (2 * j + 1) / (n - 1) - 1 + o.tanh() * 2 / (n - 1),
    ('v2023', 0): lambda j, o, n: (2 * j + 1) / (n - 1) - 1 + 0 * o,
    ('v2023', -1): lambda j, o, n: ((2 * j + 1) / (n - 1) - 1 + o).clamp(-1, 1),
}


@pytest.mark.parametrize(('formulation', 'offset_range'), PLACES, ids=str)
def test_keys_lie_where_the_formulation_says(formulation, offset_range):
    place = {'v2022': positions_v2022, 'v2023': positions_v2023}[formulation]
    offsets = torch.randn(2, 3, 4, 5, 2)

    positions = place(offsets, offset_range)

    expected = torch.empty_like(offsets)
    for axis, n in enumerate((4, 5)):
        j = torch.arange(n).view((n, 1) if axis == 0 else n)
        axis_offsets = offsets[..., axis]
        expected[..., axis] = PLACES[formulation, offset_range](j, axis_offsets, n)
    torch.testing.assert_close(positions, expected)


@pytest.mark.parametrize('offset_range', [2, 0, -1])
@pytest.mark.parametrize('place', [positions_v2022, positions_v2023])
def test_one_key_starts_from_the_middle(place, offset_range):
    positions = place(torch.zeros(1, 1, 1, 1, 2), offset_range)

    assert positions.flatten().tolist() == [0, 0]


@pytest.mark.parametrize('place', [positions_v2022, positions_v2023])
def test_positions_are_float32_at_least(place):
    offsets = torch.zeros(1, 1, 200, 300, 2)

    assert place(offsets.double(), -1).dtype == torch.float64
    torch.testing.assert_close(
        place(offsets.bfloat16(), -1), place(offsets, -1), atol=0, rtol=0
    )


@pytest.mark.parametrize(
    ('centers', 'expected'),
    [
        (cell_centers, [-0.75, -0.25, 0.25, 0.75]),
        (pixel_centers, [-1, -1 / 3, 1 / 3, 1]),
    ],
    ids=['cells', 'pixels'],
)
def test_centers_are_even(centers, expected):
    like = torch.zeros(1)

    torch.testing.assert_close(centers(4, like), torch.tensor(expected))
    assert centers(1, like).tolist() == [0]


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_features_with_float32_positions_stay_near_float32(backend):
    q, k, v, positions, table, axes = random_inputs(
        2, 7, 9, 8, 3, 2, 4, 2, 13, 17, torch.float32
    )
    exact = deformable_attention(q, k, v, positions, table, axes)

    rounded = deformable_attention(
        q.bfloat16(), k.bfloat16(), v.bfloat16(), positions, table, axes, backend
    )

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_groups_that_do_not_divide_the_heads_are_refused():
    inputs = random_inputs(1, 2, 2, 6, 2, 2, 3, 2, 3, 3)

    with pytest.raises(ValueError, match='number of heads, 3; got 2'):
        deformable_attention(*inputs)
