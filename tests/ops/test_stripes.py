import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import cross_shaped_attention, stripe_attention
from mmsparse.ops.attention import BACKENDS

CASES = {  # B, H, W, C, heads, width of the stripes
    'dividing': (2, 4, 6, 8, 2, 2),
    'narrower-last-stripes': (2, 5, 7, 8, 4, 3),
    'rows-and-columns': (1, 3, 5, 4, 2, 1),
    'wider-than-the-feature-map': (1, 2, 3, 4, 2, 7),
    'wider-than-its-height': (1, 2, 7, 4, 2, 4),
    'one-token': (1, 1, 1, 4, 2, 3),
}


def random_inputs(B, H, W, C, heads, width, dtype=torch.float64):
    shape = (3, B, H, W, C)
    tensors = torch.randn(shape, dtype=dtype, requires_grad=True).unbind()
    return tensors, heads, width


def dense_oracle(q, k, v, heads, stripe):
    """Full attention under a mask of other stripes."""
    B, H, W, C = q.shape
    rows, columns = torch.arange(H) // stripe[0], torch.arange(W) // stripe[1]
    stripe_of = (W * rows[:, None] + columns).flatten()
    q, k, v = (x.reshape(B, H * W, heads, -1).transpose(1, 2) for x in (q, k, v))
    logits = q @ k.mT * (C // heads) ** -0.5
    logits = logits.masked_fill(stripe_of[:, None] != stripe_of, -torch.inf)
    return (logits.softmax(-1) @ v).transpose(1, 2).reshape(B, H, W, C)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_a_cross_is_masked_full_attention_in_value_and_gradient(case, backend):
    tensors, heads, width = random_inputs(*case)
    first, second = zip(*(x.chunk(2, -1) for x in tensors), strict=True)
    expected = torch.cat(
        [
            dense_oracle(*first, heads // 2, (width, case[2])),
            dense_oracle(*second, heads // 2, (case[1], width)),
        ],
        dim=-1,
    )
    actual = cross_shaped_attention(*tensors, heads, width, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent, retain_graph=True),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('stripe', [(1, 7), (5, 1), (2, 3)], ids=str)
def test_stripes_of_any_shape_are_masked_full_attention(stripe, backend):
    tensors, heads, _ = random_inputs(2, 5, 7, 8, 2, 1)

    actual = stripe_attention(*tensors, heads, stripe, backend)

    torch.testing.assert_close(actual, dense_oracle(*tensors, heads, stripe))


def test_gradients_are_those_of_finite_differences():
    tensors, heads, width = random_inputs(1, 2, 3, 2, 2, 2)

    assert gradcheck(lambda *args: cross_shaped_attention(*args, heads, width), tensors)


@pytest.mark.parametrize('width', [2, 3])
def test_bfloat16_stays_near_float32(width):
    tensors, heads, _ = random_inputs(2, 4, 6, 8, 2, width, torch.float32)
    exact = cross_shaped_attention(*tensors, heads, width)

    rounded = cross_shaped_attention(*(x.bfloat16() for x in tensors), heads, width)

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    ('heads', 'width', 'message'),
    [
        (1, 2, 'num_heads must be even, .*; got 1'),
        (6, 2, 'num_heads must divide the channels, 2; got 3'),
        (2, 0, 'stripe must have a height and width of at least 1; got 0x3'),
    ],
)
def test_arguments_out_of_range_are_rejected(heads, width, message):
    with pytest.raises(ValueError, match=message):
        cross_shaped_attention(*torch.rand(3, 1, 2, 3, 4), heads, width)
