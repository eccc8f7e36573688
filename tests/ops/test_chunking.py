import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmsparse.ops import reference_only
from mmsparse.ops._chunking import (
    CHECKPOINT_BACKENDS,
    CHUNK_BACKENDS,
    checkpointed,
    chunked,
    chunked_attention,
)


def inputs():
    """Seven queries of width 3, with an offset each, and five keys."""
    q, offset, k = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((7, 3), (7,), (5, 3))
    )
    return q, offset, k


def attend(q, offset, index, k):
    return (q @ k.T + offset[:, None]).softmax(-1) @ k + k[index]


@pytest.mark.parametrize('length', [1, 3, 7, 8])
def test_equals_a_single_chunk_in_value_and_gradient(length):
    q, offset, k = inputs()
    index = torch.tensor([0, 4, 4, 2, 1, 0, 3])
    expected = attend(q, offset, index, k)
    cotangent = torch.randn_like(expected)

    actual = chunked_attention(attend, (q, offset, index), (k,), length)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (q, offset, k), cotangent),
        torch.autograd.grad(expected, (q, offset, k), cotangent),
    )


def test_composes_with_activation_checkpointing():
    q, offset, k = inputs()
    index = torch.zeros(7, dtype=torch.long)

    def run(q, offset, k):
        return chunked_attention(attend, (2 * q, offset, index), (k,), 2).exp()

    expected, actual = (
        run(q, offset, k),
        checkpoint(run, q, offset, k, use_reentrant=False),
    )

    torch.testing.assert_close(
        torch.autograd.grad(actual.sum(), (q, offset, k)),
        torch.autograd.grad(expected.sum(), (q, offset, k)),
    )


@pytest.mark.parametrize('name', ['queries', 'shared'])
def test_inputs_without_gradient_get_none(name):
    q, offset, k = inputs()
    index = torch.zeros(7, dtype=torch.long)
    fixed = q if name == 'queries' else k
    fixed.requires_grad_(False)

    out = chunked_attention(attend, (q, offset, index), (k,), 2)
    out.sum().backward()

    assert fixed.grad is None
    assert (k if name == 'queries' else q).grad is not None


def test_saves_only_the_inputs_for_backward():
    q, offset, k = inputs()
    index = torch.zeros(7, dtype=torch.long)
    saved = []

    def pack(x):
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        chunked_attention(attend, (q, offset, index), (k,), 2)

    assert set(saved) == {x.data_ptr() for x in (q, offset, index, k)}


def test_chunks_compute_without_autocast():
    q, k = (torch.randn(4, 3) for _ in range(2))
    dtypes = []

    def multiply(q, k):
        dtypes.append((q @ k.T).dtype)
        return q

    with torch.autocast('cpu', torch.bfloat16):
        chunked_attention(multiply, (q,), (k,), 4)
        chunked_attention(multiply, (q,), (k,), 2)

    assert dtypes == 3 * [torch.float32]


def transform(x):
    return x.sin().exp() @ torch.ones(3, 2, dtype=x.dtype)


@pytest.mark.parametrize('backend', CHECKPOINT_BACKENDS)
def test_checkpointed_equals_the_function_in_value_and_gradient(backend):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    actual = checkpointed(transform, x, backend)

    torch.testing.assert_close(actual, transform(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(transform(x).cos().sum(), x),
    )


def count_saved(call, x):
    """Count the tensors but x that a call saves for backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor
    ):
        call()
    # torch 2.1 saves an empty tensor, too.
    return sum(tensor is not x and tensor.numel() > 0 for tensor in saved)


def test_checkpointed_saves_only_its_input_if_it_is_large(on_cpu):
    x = torch.randn(4, 3, requires_grad=True)

    on_cpu(checkpoint_min_numel=13)
    assert count_saved(lambda: checkpointed(transform, x), x) > 0
    on_cpu(checkpoint_min_numel=12)
    assert count_saved(lambda: checkpointed(transform, x), x) == 0
    with reference_only():
        assert count_saved(lambda: checkpointed(transform, x), x) > 0


@pytest.mark.parametrize('chunk', [1, 12, 24, 100])
@pytest.mark.parametrize('backend', CHUNK_BACKENDS)
def test_chunked_equals_the_function_in_value_and_gradient(on_cpu, backend, chunk):
    on_cpu(chunk_numel=chunk)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = []

    def record(x):
        lengths.append(len(x))
        return transform(x)

    actual = chunked(record, x, numel=12, backend=backend)

    longest = 5 if backend == 'reference' else {1: 1, 12: 1, 24: 2, 100: 5}[chunk]
    assert max(lengths) == longest
    assert sum(lengths) == 5
    torch.testing.assert_close(actual, transform(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(transform(x).cos().sum(), x),
    )


def test_unknown_backends_are_rejected():
    x = torch.zeros(1, 3)

    with pytest.raises(ValueError, match="'checkpointed'.*got 'fast'"):
        checkpointed(transform, x, 'fast')
    with pytest.raises(ValueError, match="'chunked'.*got 'fast'"):
        chunked(transform, x, 1, 'fast')


def test_a_named_checkpoint_saves_nothing_for_weights_alone():
    """The argument of frozen layers requires no gradient; those behind them learn."""
    x, weight = torch.randn(4, 3), torch.randn(3, requires_grad=True)

    def scaled(x):
        return transform(x * weight)

    assert count_saved(lambda: checkpointed(scaled, x), x) > 0
    assert count_saved(lambda: checkpointed(scaled, x, 'checkpointed'), x) == 0
