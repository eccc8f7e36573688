import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mmsparse.ops import neighborhood_attention

# The others have separate tests: test_neighborhood_flex, test_neighborhood_triton.
BACKENDS = ('auto', 'reference', 'tiled')
CASES = {  # B, H, W, C, heads, kernel
    'one-tile': (2, 7, 5, 8, 2, 3),
    'size-of-the-kernel': (1, 5, 5, 4, 1, 5),
    'kernel-of-one': (1, 1, 5, 4, 2, 1),
    'uneven-tiles': (1, 9, 10, 4, 2, 7),
    'several-tiles': (2, 19, 33, 4, 1, 5),
    'tiles-wider-than-the-kernel': (1, 26, 8, 4, 2, 3),
    'tiles-beyond-the-borders': (1, 25, 35, 2, 1, 7),
    'wide-kernel': (1, 13, 17, 4, 2, 13),
}


def random_inputs(B, H, W, C, heads, kernel, dtype=torch.float64):
    q, k, v = (
        torch.randn(B, H, W, C, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    span = 2 * kernel - 1
    table = torch.randn(heads, span, span, dtype=dtype, requires_grad=True)
    return q, k, v, table


def dense_oracle(q, k, v, table):
    """Full attention under a mask that leaves every token's neighbors."""
    B, H, W, C = q.shape
    heads, kernel = len(table), (len(table[0]) + 1) // 2
    steps, near = [], []
    for length in (H, W):
        query, key = torch.arange(length)[:, None], torch.arange(length)
        first = (query - kernel // 2).clamp(0, length - kernel)
        near.append((first <= key) & (key < first + kernel))
        steps.append((key - query + kernel - 1).clamp(0, 2 * kernel - 2))
    bias = table[:, steps[0][:, None, :, None], steps[1][None, :, None, :]]
    mask = near[0][:, None, :, None] & near[1][None, :, None, :]
    bias = bias.masked_fill(~mask, -torch.inf).reshape(heads, H * W, H * W)
    q, k, v = (t.reshape(B, H * W, heads, -1).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.mT * (C // heads) ** -0.5 + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(B, H, W, C)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_masked_full_attention_in_value_and_gradient(case, backend):
    tensors = random_inputs(*case)
    expected = dense_oracle(*tensors)
    actual = neighborhood_attention(*tensors, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    tensors = random_inputs(1, 3, 4, 2, 1, 3)

    assert gradcheck(
        lambda *args: neighborhood_attention(*args, backend=backend), tensors
    )


@pytest.mark.parametrize('case', ['uneven-tiles', 'size-of-the-kernel'])
def test_transformed_functions_copy_the_same_patches(case):
    """As do graphs, they take plain operations, with another backward pass."""
    tensors = random_inputs(*CASES[case])
    expected = neighborhood_attention(*tensors)
    cotangent = torch.randn_like(expected)

    actual, backward = torch.func.vjp(neighborhood_attention, *tensors)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        backward(cotangent), torch.autograd.grad(expected, tensors, cotangent)
    )


def test_gradients_have_gradients():
    tensors = random_inputs(1, 9, 3, 1, 1, 3)

    assert gradgradcheck(neighborhood_attention, tensors)


@pytest.mark.parametrize('backend', BACKENDS)
def test_every_entry_of_the_table_is_used(backend):
    """At the corners the neighbors are on one side, up to kernel - 1 away."""
    q, k, v, table = random_inputs(1, 18, 18, 4, 1, 3)

    neighborhood_attention(q, k, v, table, backend).square().sum().backward()

    assert (table.grad != 0).all()


@pytest.mark.parametrize('backend', BACKENDS)
def test_other_tokens_do_not_matter(backend):
    q, k, v, table = random_inputs(1, 16, 12, 4, 2, 5)
    before = neighborhood_attention(q, k, v, table, backend)
    k, v = (x.detach().clone() for x in (k, v))
    k[:, 9, 6], v[:, 9, 6] = 1e3, 1e3

    after = neighborhood_attention(q, k, v, table, backend)

    changed = (before != after).any(-1)[0]
    near = torch.zeros_like(changed)
    near[7:12, 4:9] = True
    assert torch.equal(changed, near)


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_stays_near_float32(backend):
    q, k, v, table = random_inputs(2, 9, 7, 8, 2, 5, torch.float32)
    exact = neighborhood_attention(q, k, v, table)

    rounded = neighborhood_attention(
        q.bfloat16(), k.bfloat16(), v.bfloat16(), table, backend
    )

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize(
    ('backend', 'low', 'high'), [('reference', 98, 110), ('tiled', 5, 20)]
)
def test_tiles_save_no_copies_of_keys_and_values_for_every_query(backend, low, high):
    """In feature maps: the reference saves 49 of keys and 49 of values for backward."""
    q, k, v, table = random_inputs(1, 40, 40, 64, 1, 7, torch.float32)
    saved = {}

    def record(x):
        saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        neighborhood_attention(q, k, v, table, backend)

    num_maps = sum(saved.values()) / (q.numel() * q.element_size())
    assert low < num_maps < high


def test_a_feature_map_smaller_than_the_kernel_is_rejected():
    q, k, v, _ = random_inputs(1, 4, 9, 4, 1, 3)

    with pytest.raises(
        ValueError, match=r'feature map, 4x9; got a kernel of 5, .*\(1, 9, 9\)'
    ):
        neighborhood_attention(q, k, v, torch.zeros(1, 9, 9))


def test_an_even_kernel_is_rejected():
    q, k, v, _ = random_inputs(1, 4, 9, 4, 1, 3)

    with pytest.raises(ValueError, match='an odd kernel .* got a kernel of 4'):
        neighborhood_attention(q, k, v, torch.zeros(1, 7, 7))


def test_heads_that_do_not_divide_the_channels_are_rejected():
    q, k, v, _ = random_inputs(1, 4, 9, 4, 1, 3)

    with pytest.raises(ValueError, match='divides the channels, 4; got 3 heads'):
        neighborhood_attention(q, k, v, torch.zeros(3, 5, 5))


def test_an_unknown_backend_is_rejected():
    with pytest.raises(ValueError, match="'reference', 'tiled'.*got 'fast'"):
        neighborhood_attention(*random_inputs(1, 3, 3, 2, 1, 3), backend='fast')
