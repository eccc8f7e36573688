import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmsparse.ops import _chunking, reference_only
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


def attend(q, offset, picked, k):
    return (q @ k.T + offset[:, None]).softmax(-1) @ k + k[picked]


@pytest.mark.parametrize('length', [1, 3, 7, 8])
def test_chunks_equal_one_call_in_value_and_gradient(length):
    q, offset, k = inputs()
    picked = torch.tensor([0, 4, 4, 2, 1, 0, 3])
    expected = attend(q, offset, picked, k)
    cotangent = torch.randn_like(expected)

    actual = chunked_attention(attend, (q, offset, picked), (k,), length)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, (q, offset, k), cotangent),
        torch.autograd.grad(expected, (q, offset, k), cotangent),
    )


def test_composes_with_activation_checkpointing():
    q, offset, k = inputs()
    picked = torch.zeros(7, dtype=torch.long)

    def run(q, offset, k):
        return chunked_attention(attend, (2 * q, offset, picked), (k,), 2).exp()

    expected, actual = (
        run(q, offset, k),
        checkpoint(run, q, offset, k, use_reentrant=False),
    )

    torch.testing.assert_close(
        torch.autograd.grad(actual.sum(), (q, offset, k)),
        torch.autograd.grad(expected.sum(), (q, offset, k)),
    )


@pytest.mark.parametrize('name', ['queries', 'shared'])
def test_tensors_that_require_no_gradient_get_none(name):
    q, offset, k = inputs()
    picked = torch.zeros(7, dtype=torch.long)
    fixed = q if name == 'queries' else k
    fixed.requires_grad_(False)

    out = chunked_attention(attend, (q, offset, picked), (k,), 2)
    out.sum().backward()

    assert fixed.grad is None
    assert (k if name == 'queries' else q).grad is not None


def test_chunked_attention_saves_only_its_inputs_for_backward():
    q, offset, k = inputs()
    picked = torch.zeros(7, dtype=torch.long)
    saved = []

    def pack(x):
        saved.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        chunked_attention(attend, (q, offset, picked), (k,), 2)

    assert set(saved) == {x.data_ptr() for x in (q, offset, picked, k)}


def test_chunks_are_computed_without_autocast():
    q, k = (torch.randn(4, 3) for _ in range(2))
    types = []

    def product(q, k):
        types.append((q @ k.T).dtype)
        return q

    with torch.autocast('cpu', torch.bfloat16):
        chunked_attention(product, (q,), (k,), 4)
        chunked_attention(product, (q,), (k,), 2)

    assert types == 3 * [torch.float32]


def bend(x):
    return x.sin().exp() @ torch.ones(3, 2, dtype=x.dtype)


@pytest.mark.parametrize('backend', CHECKPOINT_BACKENDS)
def test_checkpointed_equals_the_function_in_value_and_gradient(backend):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    actual = checkpointed(bend, x, backend)

    torch.testing.assert_close(actual, bend(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(bend(x).cos().sum(), x),
    )


def count_saved(run, x):
    """Count the tensors that are saved for backward, without ``x`` itself."""
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    # torch 2.1 saves an empty tensor, too.
    return len([tensor for tensor in saved if tensor is not x and tensor.numel()])


def test_checkpointed_saves_only_its_argument():
    x = torch.randn(4, 3, requires_grad=True)

    assert count_saved(lambda: checkpointed(bend, x), x) == 0
    with reference_only():
        assert count_saved(lambda: checkpointed(bend, x), x) > 0


def test_a_named_checkpoint_saves_nothing_for_weights_alone():
    """The argument of frozen layers requires no gradient; those behind them learn."""
    x, weight = torch.randn(4, 3), torch.randn(3, requires_grad=True)

    def scaled(x):
        return bend(x * weight)

    assert count_saved(lambda: checkpointed(scaled, x), x) > 0
    assert count_saved(lambda: checkpointed(scaled, x, 'checkpointed'), x) == 0


@pytest.mark.parametrize('limit', [1, 12, 24, 100])
@pytest.mark.parametrize('backend', CHUNK_BACKENDS)
def test_chunked_equals_the_function_in_value_and_gradient(monkeypatch, backend, limit):
    monkeypatch.setattr(_chunking, 'CHUNK_NUMEL', limit)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = []

    def recorded(x):
        lengths.append(len(x))
        return bend(x)

    actual = chunked(recorded, x, numel=12, backend=backend)

    most = 5 if backend == 'reference' else {1: 1, 12: 1, 24: 2, 100: 5}[limit]
    assert max(lengths) == most
    assert sum(lengths) == 5
    torch.testing.assert_close(actual, bend(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(bend(x).cos().sum(), x),
    )


def test_unknown_backends_raise():
    x = torch.zeros(1, 3)

    with pytest.raises(ValueError, match="'checkpointed'.*got 'fast'"):
        checkpointed(bend, x, 'fast')
    with pytest.raises(ValueError, match="'chunked'.*got 'fast'"):
        chunked(bend, x, 1, 'fast')
