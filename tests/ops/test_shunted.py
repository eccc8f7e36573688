import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import shunted_attention
from mmsparse.ops.attention import BACKENDS

SHAPES = {  # B, N, C, keys of each group, heads
    'coarse and fine': (2, 24, 16, (3, 8), 4),
    'one group': (2, 9, 8, (9,), 2),
    'one key each': (1, 5, 4, (1, 1), 2),
    'one query': (1, 1, 8, (2, 7), 8),
    'three groups': (1, 6, 12, (1, 2, 5), 3),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def inputs(request):
    return random_inputs(*request.param)


def random_inputs(B, N, C, num_keys, heads, dtype=torch.float64):
    def tokens(number, channels):
        return torch.randn(B, number, channels, dtype=dtype, requires_grad=True)

    width = C // len(num_keys)
    keys = [tokens(number, width) for number in num_keys]
    values = [tokens(number, width) for number in num_keys]
    return tokens(N, C), keys, values, heads


def dense_oracle(q, keys, values, num_heads, scale):
    """Attend one head, image and query at a time."""
    width = q.shape[-1] // num_heads
    heads_of_a_group = num_heads // len(keys)
    out = torch.zeros_like(q)
    for head in range(num_heads):
        group, within = divmod(head, heads_of_a_group)
        own = slice(head * width, (head + 1) * width)
        inside = slice(within * width, (within + 1) * width)
        for b in range(len(q)):
            for n in range(q.shape[1]):
                logits = scale * (keys[group][b, :, inside] @ q[b, n, own])
                weights = logits.exp() / logits.exp().sum()
                out[b, n, own] = weights @ values[group][b, :, inside]
    return out


@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_attention_head_by_head_in_value_and_gradient(inputs, backend):
    q, keys, values, _ = inputs
    expected = dense_oracle(*inputs, scale=0.7)
    actual = shunted_attention(*inputs, scale=0.7, backend=backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [q, *keys, *values], cotangent),
        torch.autograd.grad(expected, [q, *keys, *values], cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    q, keys, values, heads = random_inputs(1, 3, 4, (1, 2), 2)

    assert gradcheck(
        lambda q, k1, k2, v1, v2: shunted_attention(
            q, (k1, k2), (v1, v2), heads, backend=backend
        ),
        [q, *keys, *values],
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_dot_products_are_scaled_by_the_channels_of_a_head(backend):
    q, keys, values, heads = random_inputs(2, 24, 16, (3, 8), 4)

    torch.testing.assert_close(
        shunted_attention(q, keys, values, heads, backend=backend),
        shunted_attention(q, keys, values, heads, scale=4**-0.5, backend=backend),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_keys_of_one_group_do_not_matter_to_the_heads_of_the_other(backend):
    q, keys, values, heads = random_inputs(2, 6, 8, (3, 5), 4)
    before = shunted_attention(q, keys, values, heads, backend=backend)

    after = shunted_attention(
        q, [keys[0], 1e3 * keys[1]], [values[0], -values[1]], heads, backend=backend
    )

    assert torch.equal(before[..., :4], after[..., :4])
    assert not torch.equal(before[..., 4:], after[..., 4:])


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_stays_near_float32(backend):
    q, keys, values, heads = random_inputs(2, 24, 16, (3, 8), 4, torch.float32)
    exact = shunted_attention(q, keys, values, heads)

    rounded = shunted_attention(
        q.bfloat16(),
        [k.bfloat16() for k in keys],
        [v.bfloat16() for v in values],
        heads,
        backend=backend,
    )

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize('num_heads', [0, 1, 3, 16])
def test_heads_that_do_not_fit_are_rejected(num_heads):
    q, keys, values, _ = random_inputs(1, 2, 8, (1, 1), 2)

    with pytest.raises(ValueError, match=rf'groups, 2, .* q, 8; got {num_heads}\.'):
        shunted_attention(q, keys, values, num_heads)


def test_keys_without_values_are_rejected():
    q, keys, values, heads = random_inputs(1, 2, 8, (1, 1), 2)

    with pytest.raises(ValueError, match='got 2 and 1 entries'):
        shunted_attention(q, keys, values[:1], heads)
    with pytest.raises(ValueError, match='at least one; got 0 and 0'):
        shunted_attention(q, [], [], heads)


def test_keys_of_other_channels_are_rejected():
    q, keys, values, heads = random_inputs(1, 2, 8, (1, 1), 2)

    with pytest.raises(ValueError, match=r'have 4 channels, .* got \[4, 4, 4, 2\]'):
        shunted_attention(q, keys, [values[0], values[1][..., :2]], heads)


def test_an_unknown_backend_is_rejected():
    with pytest.raises(ValueError, match="'reference', 'math', 'sdpa'.*got 'fast'"):
        shunted_attention(*random_inputs(1, 2, 8, (1, 1), 2), backend='fast')
