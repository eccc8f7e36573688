import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import attention, biased_attention
from mmsparse.ops.attention import (
    BACKENDS,
    full_attention,
    merge_heads,
    split_heads,
)


def random_inputs(B, heads, N, M, D, bias, dtype=torch.float64):
    q = torch.randn(B, heads, N, D, dtype=dtype, requires_grad=True)
    k, v = (
        torch.randn(B, heads, M, D, dtype=dtype, requires_grad=True) for _ in range(2)
    )
    return q, k, v, torch.randn(*bias, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize('bias', [(5, 7), (3, 5, 7), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_the_softmax_of_scaled_dot_products_plus_bias(backend, bias):
    q, k, v, bias = random_inputs(2, 3, 5, 7, 4, bias)

    out = biased_attention(q, k, v, bias, backend)

    logits = torch.einsum('bhnd,bhmd->bhnm', q, k) / 2 + bias
    torch.testing.assert_close(
        out, torch.einsum('bhnm,bhmd->bhnd', logits.softmax(-1), v)
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_equal_finite_differences(backend):
    tensors = random_inputs(1, 2, 2, 3, 2, (2, 2, 3))

    assert gradcheck(lambda *args: biased_attention(*args, backend=backend), tensors)


@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_the_softmax_for_many_queries_and_keys(backend):
    q, k, v, bias = random_inputs(1, 2, 70, 65, 4, (70, 65))

    out = biased_attention(q, k, v, bias, backend, scale=0.3)

    logits = 0.3 * torch.einsum('bhnd,bhmd->bhnm', q, k) + bias
    torch.testing.assert_close(
        out, torch.einsum('bhnm,bhmd->bhnd', logits.softmax(-1), v)
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_no_bias_equals_a_bias_of_zero(backend):
    q, k, v, _ = random_inputs(2, 3, 5, 7, 4, (1,))

    torch.testing.assert_close(
        biased_attention(q, k, v, backend=backend),
        biased_attention(q, k, v, torch.zeros(5, 7).double(), backend),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_minus_infinity_masks_a_key(backend):
    q, k, v, _ = random_inputs(1, 1, 2, 3, 4, (1,))
    bias = torch.tensor([0.0, -torch.inf, 0.0]).double().expand(2, 3)
    kept = [0, 2]

    torch.testing.assert_close(
        biased_attention(q, k, v, bias, backend),
        biased_attention(q, k[:, :, kept], v[:, :, kept], backend=backend),
    )


@pytest.mark.parametrize('backend', [name for name in BACKENDS if name != 'math'])
def test_bfloat16_with_a_float32_bias_is_close_to_float32(backend):
    q, k, v, bias = random_inputs(2, 2, 5, 7, 8, (5, 7), torch.float32)
    exact = biased_attention(q, k, v, bias)

    rounded = biased_attention(*(x.bfloat16() for x in (q, k, v)), bias, backend)

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_math_raises_for_float16_and_for_a_bias_of_another_dtype(dtype):
    q, k, v, bias = random_inputs(1, 2, 3, 4, 8, (3, 4), torch.float32)
    exact = biased_attention(q, k, v, bias)
    q, k, v = (x.to(dtype) for x in (q, k, v))

    with pytest.raises(ValueError, match=f'one dtype, .*; got {dtype} and torch.float'):
        biased_attention(q, k, v, bias, 'math')
    if dtype == torch.float16:
        with pytest.raises(
            ValueError, match='not float16; got torch.float16. Use back'
        ):
            biased_attention(q, k, v, backend='math')
    out = biased_attention(q, k, v, bias)
    torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)


def test_math_without_gradient_equals_math_with_gradient():
    tensors = random_inputs(2, 3, 5, 7, 4, (5, 7))
    expected = biased_attention(*tensors, backend='math')

    with torch.no_grad():
        torch.testing.assert_close(biased_attention(*tensors, backend='math'), expected)


def test_full_attention_equals_attention_of_the_tokens():
    q = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 3, 8, dtype=torch.float64)
    tokens = (split_heads(x.flatten(1, 2), 2) for x in (q, k, v))

    expected = biased_attention(*tokens).transpose(1, 2).reshape(2, 3, 4, 8)

    torch.testing.assert_close(full_attention(q, k, v, num_heads=2), expected)


def test_merging_heads_inverts_splitting_them():
    tokens = torch.rand(2, 3, 5, 12)

    heads = split_heads(tokens, 4)

    assert heads.shape == (2, 3, 4, 5, 3)
    assert torch.equal(heads[:, :, 1], tokens[..., 3:6])
    assert torch.equal(merge_heads(heads), tokens)


@pytest.mark.parametrize('num_heads', [0, 3])
def test_heads_that_do_not_divide_the_channels_raise(num_heads):
    with pytest.raises(ValueError, match=f'divide the channels, 8; got {num_heads}'):
        split_heads(torch.rand(1, 2, 8), num_heads)


def test_an_unknown_backend_raises():
    q, k, v, bias = random_inputs(1, 1, 2, 2, 2, (2, 2))

    with pytest.raises(ValueError, match="'reference', 'math', 'sdpa'.*got 'fast'"):
        biased_attention(q, k, v, bias, backend='fast')


@pytest.mark.parametrize('learned', [True, False])
def test_a_bias_that_requires_gradient_uses_no_fused_kernel_on_a_cpu(
    learned, monkeypatch
):
    called = []
    monkeypatch.setattr(
        attention.F, 'scaled_dot_product_attention', lambda *_, **__: called.append(1)
    )
    q, k, v = torch.randn(3, 1, 65, 4)
    bias = torch.randn(65, 65, requires_grad=learned)

    biased_attention(q, k, v, bias)

    assert bool(called) != learned
