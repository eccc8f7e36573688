"""Dilated patterns, against the pattern on each phase of the feature map."""

import pytest
import torch

from mmsparse.ops import neighborhood_attention, window_attention
from mmsparse.ops.dilation import BACKENDS, dilated, merge_phases, split_phases

CASES = {  # H, W, heads, kernel, dilation
    'dividing': (6, 9, 2, 3, 2),
    'as-large-as-the-kernel': (6, 10, 1, 3, 2),
    'longer-phases': (11, 10, 2, 3, 3),
    'one-longer-phase': (10, 13, 1, 3, 3),
    'kernel-of-one': (5, 3, 2, 1, 3),
}


def random_inputs(H, W, heads, kernel, dilation, dtype=torch.float64):
    q, k, v = torch.randn(3, 2, H, W, 4, dtype=dtype, requires_grad=True).unbind()
    table = torch.randn(heads, *(2 * kernel - 1,) * 2, dtype=dtype, requires_grad=True)
    return (q, k, v, table), dilation


def dense_oracle(q, k, v, table, dilation):
    """Full attention under a mask that leaves every token's neighbors."""
    B, H, W, C = q.shape
    heads, kernel = len(table), (len(table[0]) + 1) // 2
    steps, near = [], []
    for length in (H, W):
        step, is_near = torch.zeros(2, length, length, dtype=torch.long)
        for query in range(length):
            keys = range(query % dilation, length, dilation)
            own = query // dilation
            first = min(max(own - kernel // 2, 0), len(keys) - kernel)
            for i in range(first, first + kernel):
                step[query, keys[i]] = i - own + kernel - 1
                is_near[query, keys[i]] = 1
        steps.append(step)
        near.append(is_near.bool())
    bias = table[:, steps[0][:, None, :, None], steps[1][None, :, None, :]]
    mask = near[0][:, None, :, None] & near[1][None, :, None, :]
    bias = bias.masked_fill(~mask, -torch.inf).reshape(heads, H * W, H * W)
    q, k, v = (x.reshape(B, H * W, heads, -1).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.mT * (C // heads) ** -0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, H, W, C)


@pytest.mark.parametrize('backend', ['auto', 'reference', 'tiled'])
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_dilated_neighborhoods_are_masked_full_attention(case, backend):
    tensors, dilation = random_inputs(*case)
    expected = dense_oracle(*tensors, dilation)
    actual = neighborhood_attention(*tensors, backend, dilation)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent, retain_graph=True),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('shift', [0, 1])
def test_dilated_windows_are_windows_of_each_phase(shift):
    q, k, v = torch.randn(3, 2, 8, 12, 4, dtype=torch.double, requires_grad=True)
    bias = torch.randn(2, 4, 4, dtype=torch.double, requires_grad=True)
    expected = torch.zeros_like(q)
    for i in range(2):
        for j in range(2):
            phase = (x[:, i::2, j::2] for x in (q, k, v))
            expected[:, i::2, j::2] = window_attention(*phase, bias, 2, shift)

    actual = window_attention(q, k, v, bias, 2, shift, dilation=2)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual.sin().sum(), bias),
        torch.autograd.grad(expected.sin().sum(), bias),
    )


def test_windows_as_many_as_phases_are_a_grid_over_the_feature_map():
    """The grid attention of MaxViT."""
    x = torch.rand(1, 4, 4, 2)

    out = window_attention(x, x, x, torch.zeros(1, 4, 4), 2, dilation=2)

    first = x[:, ::2, ::2].flatten(1, 2)
    weights = (first @ first.mT * 2**-0.5).softmax(-1)
    torch.testing.assert_close(out[:, 0, 0], (weights @ first)[:, 0])


@pytest.mark.parametrize('size', [(6, 9), (7, 8), (3, 3)], ids=str)
def test_phases_are_called_together_or_one_by_one(size):
    x, calls = torch.rand(2, *size, 4), []

    def attend(x):
        calls.append(tuple(x.shape))
        return x.flip(1, 2)

    together, one_by_one = (dilated(attend, [x], 3, name) for name in BACKENDS)

    assert torch.equal(together, one_by_one)
    assert len(calls) == 9 + 2 ** sum(length % 3 > 0 for length in size)


def test_merging_undoes_splitting():
    x = torch.rand(2, 6, 8, 3)

    phases = split_phases(x, (3, 2))

    assert torch.equal(phases[1], x[0, ::3, 1::2])
    assert torch.equal(merge_phases(phases, (3, 2)), x)


@pytest.mark.parametrize('dilation', [0, -1, 3])
def test_a_neighborhood_that_does_not_fit_is_rejected(dilation):
    tensors, _ = random_inputs(8, 9, 1, 3, 1)
    message = 'at least 1' if dilation < 1 else 'at most the feature map, 8x9, over the'

    with pytest.raises(ValueError, match=f'dilation must be {message}.*; got'):
        neighborhood_attention(*tensors, dilation=dilation)


def test_windows_that_do_not_divide_are_rejected():
    q, k, v = torch.rand(3, 1, 6, 8, 4)
    bias = torch.zeros(1, 4, 4)

    with pytest.raises(
        ValueError, match='window=2 times dilation=2 must divide the .* of 6x8'
    ):
        window_attention(q, k, v, bias, 2, dilation=2)
    with pytest.raises(ValueError, match='dilation must be at least 1; got 0'):
        window_attention(q, k, v, bias, 2, dilation=0)
