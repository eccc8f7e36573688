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
def test_is_the_softmax_of_scaled_dot_products_plus_bias(backend, bias):
    q, k, v, bias = random_inputs(2, 3, 5, 7, 4, bias)

    out = biased_attention(q, k, v, bias, backend)

    logits = torch.einsum('bhnd,bhmd->bhnm', q, k) / 2 + bias
    torch.testing.assert_close(
        out, torch.einsum('bhnm,bhmd->bhnd', logits.softmax(-1), v)
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    tensors = random_inputs(1, 2, 2, 3, 2, (2, 2, 3))

    assert gradcheck(lambda *args: biased_attention(*args, backend=backend), tensors)


def test_math_keeps_the_weights_but_no_logits_and_no_bias():
    tensors = random_inputs(4, 6, 5, 7, 4, (6, 5, 7))
    kept = []

    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda x: x):
        biased_attention(*tensors, 'math')

    assert [x.numel() for x in kept if x.shape[-2:] == (5, 7)] == [4 * 6 * 5 * 7]


@pytest.mark.parametrize('backend', BACKENDS)
def test_large_matrices_are_the_same_function(backend):
    q, k, v, bias = random_inputs(1, 2, 70, 65, 4, (70, 65))

    out = biased_attention(q, k, v, bias, backend, scale=0.3)

    logits = 0.3 * torch.einsum('bhnd,bhmd->bhnm', q, k) + bias
    torch.testing.assert_close(
        out, torch.einsum('bhnm,bhmd->bhnd', logits.softmax(-1), v)
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_without_bias_it_is_plain_attention(backend):
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


@pytest.mark.parametrize('backend', ['auto', 'reference', 'sdpa'])
def test_bfloat16_with_a_float32_bias_stays_near_float32(backend):
    q, k, v, bias = random_inputs(2, 2, 5, 7, 8, (5, 7), torch.float32)
    exact = biased_attention(q, k, v, bias)

    rounded = biased_attention(*(x.bfloat16() for x in (q, k, v)), bias, backend)

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_with_a_bfloat16_bias_stays_near_float32(backend):
    tensors = random_inputs(2, 2, 5, 7, 8, (5, 7), torch.float32)
    exact = biased_attention(*tensors)

    rounded = biased_attention(*(x.bfloat16() for x in tensors), backend)

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=4e-2, rtol=4e-2)


@pytest.mark.parametrize('backend', BACKENDS)
def test_full_attention_of_feature_maps_equals_attention_of_their_tokens(backend):
    q = torch.randn(2, 3, 4, 8, dtype=torch.float64)
    k, v = torch.randn(2, 2, 2, 3, 8, dtype=torch.float64)
    tokens = (x.flatten(1, 2).unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v))
    expected = biased_attention(*tokens, scale=0.3).transpose(1, 2).reshape(q.shape)

    actual = full_attention(q, k, v, num_heads=2, backend=backend, scale=0.3)

    torch.testing.assert_close(actual, expected)


def test_merging_heads_undoes_splitting_them():
    tokens = torch.rand(2, 3, 5, 12)

    heads = split_heads(tokens, 4)

    assert heads.shape == (2, 3, 4, 5, 3)
    assert torch.equal(heads[:, :, 1], tokens[..., 3:6])
    assert torch.equal(merge_heads(heads), tokens)


@pytest.mark.parametrize('num_heads', [0, 3])
def test_heads_that_do_not_divide_are_rejected(num_heads):
    with pytest.raises(ValueError, match=f'divide the channels, 8; got {num_heads}'):
        split_heads(torch.rand(1, 2, 8), num_heads)


@pytest.mark.parametrize('with_bias', [True, False])
def test_math_rejects_half_precision_and_mixed_dtypes(with_bias):
    q, k, v, bias = random_inputs(1, 1, 2, 3, 2, (2, 3), torch.float32)
    half_inputs = [x.half() for x in (q, k, v)]
    message = r"'math' needs q and bias of one dtype.*got torch.float16.*'auto'"

    with pytest.raises(ValueError, match=message):
        biased_attention(*half_inputs, bias.half() if with_bias else None, 'math')
    with pytest.raises(ValueError, match='got torch.bfloat16 and torch.float32'):
        biased_attention(*(x.bfloat16() for x in (q, k, v)), bias, 'math')


def test_an_unknown_backend_is_rejected():
    q, k, v, bias = random_inputs(1, 1, 2, 2, 2, (2, 2))

    with pytest.raises(ValueError, match="'reference', 'math', 'sdpa'.*got 'fast'"):
        biased_attention(q, k, v, bias, backend='fast')


@pytest.mark.parametrize('learned', [True, False])
def test_auto_chooses_no_fused_kernel_for_a_learned_bias_on_a_cpu(learned, monkeypatch):
    called = []
    monkeypatch.setattr(
        attention.F, 'scaled_dot_product_attention', lambda *_, **__: called.append(1)
    )
    q, k, v = torch.randn(3, 1, 65, 4)
    bias = torch.randn(65, 65, requires_grad=learned)

    biased_attention(q, k, v, bias)

    assert bool(called) != learned


def test_math_without_gradient_equals_math_with_gradient():
    tensors = random_inputs(2, 3, 5, 7, 4, (5, 7))
    expected = biased_attention(*tensors, backend='math')

    with torch.no_grad():
        torch.testing.assert_close(biased_attention(*tensors, backend='math'), expected)


@pytest.mark.parametrize(
    ('bias', 'only'),
    [(None, None), (None, 0), (None, 1), (None, 2)]
    + [((5, 7), None), ((3, 5, 7), None), ((5, 7), 3)],
    ids=str,
)
def test_math_has_the_gradients_and_their_gradients_of_the_reference(bias, only):
    shapes = [(2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), *([bias] if bias else [])]
    inputs = [
        torch.randn(shape, dtype=torch.float64).requires_grad_(only in (None, i))
        for i, shape in enumerate(shapes)
    ]
    variables = [x for x in inputs if x.requires_grad]

    def gradients(backend):
        out = biased_attention(*inputs, backend=backend)
        once = torch.autograd.grad(out.sin().sum(), variables, retain_graph=True)
        again = torch.autograd.grad(out.sin().sum(), variables, create_graph=True)
        twice = torch.autograd.grad(sum(x.square().sum() for x in again), variables)
        return once, again, twice

    torch.testing.assert_close(gradients('math'), gradients('reference'))


def test_math_runs_under_autocast_and_on_meta():
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    exact = biased_attention(q, k, v, backend='reference')
    with torch.autocast('cpu', torch.bfloat16):
        out = biased_attention(q, k, v, backend='math')
    out.sum().backward()
    torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)
    assert q.grad.isfinite().all()

    q, k, v = (x.detach().to('meta').requires_grad_() for x in (q, k, v))
    biased_attention(q, k, v, backend='math').sum().backward()
    assert q.grad.shape == q.shape
