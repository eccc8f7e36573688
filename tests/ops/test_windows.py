import itertools

import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import biased_attention, window_attention
from mmsparse.ops.attention import BACKENDS
from mmsparse.ops.windows import window_bias

CASES = {  # B, H, W, C, heads, window, shift
    'plain': (2, 4, 6, 8, 2, 2, 0),
    'shifted': (2, 6, 9, 8, 2, 3, 2),
    'one-window': (1, 3, 3, 4, 1, 3, 0),
    'one-shifted-window': (1, 3, 3, 4, 1, 3, 2),
    'one-row-shifted': (1, 2, 6, 4, 2, 2, 1),
    'even-window-shifted': (2, 8, 4, 8, 4, 4, 2),
    'one-token-windows': (1, 2, 3, 4, 2, 1, 0),
}


def random_inputs(B, H, W, C, heads, window, shift, dtype=torch.float64):
    q, k, v = (
        torch.randn(B, H, W, C, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    bias = torch.randn(heads, window**2, window**2, dtype=dtype, requires_grad=True)
    return (q, k, v, bias), window, shift


def dense_oracle(q, k, v, bias, window, shift):
    """Full attention under a mask of other windows."""
    B, H, W, C = q.shape
    heads = len(bias)
    rows, columns = (torch.arange(n) for n in (H, W))
    # Rolled coordinates; tokens rolled around from the other end are another part.
    y, x = (rows - shift) % H, (columns - shift) % W
    part_y, part_x = (y >= H - shift).int(), (x >= W - shift).int()
    window_of = (y[:, None] // window * W + x // window).flatten()
    part_of = (2 * part_y[:, None] + part_x).flatten()
    inside = (y[:, None] % window * window + x % window).flatten()

    logits = bias[:, inside[:, None], inside]
    logits = logits - 100 * (part_of[:, None] != part_of)
    logits = logits.masked_fill(window_of[:, None] != window_of, -torch.inf)
    q, k, v = (t.reshape(B, H * W, heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT * (C // heads) ** -0.5 + logits).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, H, W, C)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_masked_full_attention_in_value_and_gradient(case, backend):
    tensors, window, shift = random_inputs(*case)
    expected = dense_oracle(*tensors, window, shift)
    actual = window_attention(*tensors, window, shift, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('shift', [0, 1])
def test_gradients_are_those_of_finite_differences(shift):
    tensors, window, _ = random_inputs(1, 2, 4, 2, 1, 2, shift)

    assert gradcheck(lambda *args: window_attention(*args, window, shift), tensors)


def test_one_window_of_the_size_of_the_feature_map_equals_full_attention():
    (q, k, v, bias), window, _ = random_inputs(2, 3, 3, 8, 2, 3, 0)
    tokens = (
        x.reshape(2, 9, 2, 4).transpose(1, 2) for x in (q, k, v)
    )  # (B, heads, N, C / heads)
    full = biased_attention(*tokens, bias).transpose(1, 2).reshape(2, 3, 3, 8)

    torch.testing.assert_close(window_attention(q, k, v, bias, window), full)


def test_tokens_of_other_windows_do_not_matter():
    (q, k, v, bias), window, _ = random_inputs(1, 4, 6, 4, 1, 2, 0)
    before = window_attention(q, k, v, bias, window)
    k, v = (x.detach().clone() for x in (k, v))
    k[:, 2:], v[:, 2:] = 1e3, 1e3

    after = window_attention(q, k, v, bias, window)

    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2:], after[:, 2:])


@pytest.mark.parametrize('backend', BACKENDS)
def test_tokens_beyond_the_cut_have_no_weight_at_all(backend):
    """A weight of exp(-100) would be a denormal number, which is slow."""
    (q, k, v, bias), window, shift = random_inputs(
        1, 2, 4, 2, 1, 2, 1, dtype=torch.float32
    )
    before = window_attention(q, k, v, bias, window, shift, backend)
    v = v.detach().clone()
    v[:, 0] = 1e38

    after = window_attention(q, k, v, bias, window, shift, backend)

    assert torch.equal(before[:, 1], after[:, 1])
    assert not torch.equal(before[:, 0], after[:, 0])


@pytest.mark.parametrize('shift', [0, 2])
def test_bfloat16_stays_near_float32(shift):
    (q, k, v, bias), window, _ = random_inputs(2, 6, 9, 8, 2, 3, shift, torch.float32)
    exact = window_attention(q, k, v, bias, window, shift)

    rounded = window_attention(
        q.bfloat16(), k.bfloat16(), v.bfloat16(), bias, window, shift
    )

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize('window', [1, 2, 3])
def test_the_bias_of_a_pair_is_the_entry_of_query_minus_key(window):
    span = 2 * window - 1
    table = torch.randn(span**2, 3)

    bias = window_bias(table, window)

    tokens = list(itertools.product(range(window), repeat=2))
    for (i, (yq, xq)), (j, (yk, xk)) in itertools.product(enumerate(tokens), repeat=2):
        entry = (yq - yk + window - 1) * span + (xq - xk + window - 1)
        assert torch.equal(bias[:, i, j], table[entry])


def test_a_feature_map_that_windows_do_not_divide_is_rejected():
    tensors, _, _ = random_inputs(1, 5, 6, 4, 1, 2, 0)

    with pytest.raises(ValueError, match='window=2 must divide the feature map of 5x6'):
        window_attention(*tensors, 2)


@pytest.mark.parametrize('shift', [-1, 2])
def test_a_shift_out_of_range_is_rejected(shift):
    tensors, window, _ = random_inputs(1, 4, 4, 4, 1, 2, 0)

    with pytest.raises(ValueError, match=f'from 0 to window - 1, 1 here; got {shift}'):
        window_attention(*tensors, window, shift)


@pytest.mark.parametrize('backend', BACKENDS)
def test_heads_that_do_not_divide_the_channels_are_rejected(backend):
    q, k, v = torch.rand(3, 1, 2, 2, 4)

    with pytest.raises(ValueError, match='heads must divide the channels, 4; got 3'):
        window_attention(q, k, v, torch.zeros(3, 4, 4), window=2, backend=backend)
