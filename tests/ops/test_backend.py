import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops import biased_attention, reference_only
from mmsparse.ops.attention import SMALL


def test_no_fast_path_is_taken_within_reference_only(monkeypatch):
    x = torch.randn(1, SMALL, 2)
    expected = biased_attention(x, x, x)

    def fail(*args, **kwargs):
        raise AssertionError('a fast path')

    monkeypatch.setattr(F, 'scaled_dot_product_attention', fail)
    with reference_only():
        torch.testing.assert_close(biased_attention(x, x, x), expected)
    with pytest.raises(AssertionError, match='a fast path'):
        biased_attention(x, x, x)


def test_an_error_ends_reference_only(monkeypatch):
    x = torch.randn(1, SMALL, 2)
    with pytest.raises(KeyError), reference_only():
        raise KeyError
    taken = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: taken.append(args)
    )

    biased_attention(x, x, x)

    assert taken


def test_a_named_backend_is_taken_within_reference_only(monkeypatch):
    x = torch.randn(1, 2, 2)
    taken = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: taken.append(args)
    )
    with reference_only():
        biased_attention(x, x, x, backend='sdpa')

    assert taken
