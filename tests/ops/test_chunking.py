import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmsparse.ops import _chunking as recompute
from mmsparse.ops import reference_only
from mmsparse.ops._chunking import (
    BACKENDS,
    PICTURE_BACKENDS,
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
def test_equals_all_at_once_in_value_and_gradient(length):
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


@pytest.mark.parametrize('name', ['queries', 'others'])
def test_what_needs_no_gradient_gets_none(name):
    q, offset, k = inputs()
    picked = torch.zeros(7, dtype=torch.long)
    fixed = q if name == 'queries' else k
    fixed.requires_grad_(False)

    out = chunked_attention(attend, (q, offset, picked), (k,), 2)
    out.sum().backward()

    assert fixed.grad is None
    assert (k if name == 'queries' else q).grad is not None


def test_a_part_never_outlives_itself():
    """Nothing but the inputs is kept for the backward pass."""
    q, offset, k = inputs()
    picked = torch.zeros(7, dtype=torch.long)
    kept = []

    def pack(x):
        kept.append(x.data_ptr())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        chunked_attention(attend, (q, offset, picked), (k,), 2)

    assert set(kept) == {x.data_ptr() for x in (q, offset, picked, k)}


def test_the_parts_compute_without_autocast():
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


@pytest.mark.parametrize('backend', BACKENDS)
def test_recomputed_is_the_function_in_value_and_gradient(backend):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    actual = checkpointed(bend, x, backend)

    torch.testing.assert_close(actual, bend(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(bend(x).cos().sum(), x),
    )


def test_recomputed_keeps_only_what_it_is_called_with():
    x = torch.randn(4, 3, requires_grad=True)
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        checkpointed(bend, x)
        # torch 2.1 keeps an empty tensor, too.
        assert not [tensor for tensor in kept if tensor is not x and tensor.numel()]
        with reference_only():
            checkpointed(bend, x)

    assert len(kept) > 1


@pytest.mark.parametrize('part', [1, 12, 24, 100])
@pytest.mark.parametrize('backend', PICTURE_BACKENDS)
def test_by_pictures_is_the_function_in_value_and_gradient(monkeypatch, backend, part):
    monkeypatch.setattr(recompute, 'PART', part)
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    lengths = []

    def watched(x):
        lengths.append(len(x))
        return bend(x)

    actual = chunked(watched, x, numbers=12, backend=backend)

    most = 5 if backend == 'reference' else {1: 1, 12: 1, 24: 2, 100: 5}[part]
    assert max(lengths) == most
    assert sum(lengths) == 5
    torch.testing.assert_close(actual, bend(x))
    torch.testing.assert_close(
        torch.autograd.grad(actual.cos().sum(), x),
        torch.autograd.grad(bend(x).cos().sum(), x),
    )


def test_unknown_backends_are_refused():
    x = torch.zeros(1, 3)

    with pytest.raises(ValueError, match="'checkpointed'.*got 'fast'"):
        checkpointed(bend, x, 'fast')
    with pytest.raises(ValueError, match="'chunked'.*got 'fast'"):
        chunked(bend, x, 1, 'fast')
