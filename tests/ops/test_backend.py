import threading

import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops import biased_attention, reference_only
from mmsparse.ops.attention import MATH_MAX_LOGITS


@pytest.fixture
def fused_calls(monkeypatch):
    """Arguments of the calls of the fused kernel, which computes nothing."""
    calls = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: calls.append(args)
    )
    return calls


@pytest.fixture
def x():
    return torch.randn(1, MATH_MAX_LOGITS, 2)


def test_reference_only_makes_auto_the_reference(x, monkeypatch):
    expected = biased_attention(x, x, x)

    def fail(*args, **kwargs):
        raise AssertionError('a fused kernel')

    monkeypatch.setattr(F, 'scaled_dot_product_attention', fail)
    with reference_only():
        torch.testing.assert_close(biased_attention(x, x, x), expected)
    with pytest.raises(AssertionError, match='a fused kernel'):
        biased_attention(x, x, x)


def test_an_exception_ends_reference_only(x, fused_calls):
    with pytest.raises(KeyError), reference_only():
        raise KeyError

    biased_attention(x, x, x)

    assert fused_calls


def test_reference_only_may_be_nested(x, fused_calls):
    with reference_only():
        with reference_only():
            pass
        biased_attention(x, x, x)

    assert not fused_calls


def test_reference_only_does_not_hold_in_other_threads(x, fused_calls):
    with reference_only():
        thread = threading.Thread(target=biased_attention, args=(x, x, x))
        thread.start()
        thread.join()

    assert fused_calls


def test_a_named_backend_is_used_within_reference_only(fused_calls):
    x = torch.randn(1, 2, 2)
    with reference_only():
        biased_attention(x, x, x, backend='sdpa')

    assert fused_calls


def test_reference_only_is_compiled_in(x):
    torch.compiler.reset()
    compiled = torch.compile(biased_attention, fullgraph=True, backend='eager')

    with reference_only():
        torch.testing.assert_close(compiled(x, x, x), biased_attention(x, x, x))
