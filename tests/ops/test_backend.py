from contextvars import copy_context
from dataclasses import replace
from threading import Thread

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental import symbolic_shapes

from mmsparse.ops import _backend, attention, biased_attention, reference_only
from mmsparse.ops._backend import resolve_backend
from mmsparse.ops._devices import CPU


def test_auto_chooses_the_reference_within_reference_only(monkeypatch):
    x = torch.randn(1, CPU.math_max_logits, 2, dtype=torch.float64)
    expected = biased_attention(x, x, x)

    def fail(*args, **kwargs):
        raise AssertionError('a fused kernel')

    monkeypatch.setattr(F, 'scaled_dot_product_attention', fail)
    with reference_only():
        torch.testing.assert_close(biased_attention(x, x, x), expected)
    with pytest.raises(AssertionError, match='a fused kernel'):
        biased_attention(x, x, x)


@pytest.mark.parametrize('trains', [True, False])
def test_few_logits_take_the_fused_kernel_where_it_pays(monkeypatch, trains):
    settings = replace(CPU, math_max_logits=9, math_max_logits_inference=4)
    monkeypatch.setattr(attention, 'settings_for', lambda x: settings)
    x = torch.randn(1, 3, 2, requires_grad=trains)
    calls = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: calls.append(args)
    )

    for length in (2, 3):
        biased_attention(x[:, :length], x[:, :length], x[:, :length])
    with torch.no_grad():
        biased_attention(x, x, x)

    assert len(calls) == (1 if trains else 2)


def test_an_exception_ends_reference_only(monkeypatch):
    x = torch.randn(1, CPU.math_max_logits, 2)
    with pytest.raises(KeyError), reference_only():
        raise KeyError
    calls = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: calls.append(args)
    )

    biased_attention(x, x, x)

    assert calls


def test_a_named_backend_is_used_within_reference_only(monkeypatch):
    x = torch.randn(1, 2, 2)
    calls = []
    monkeypatch.setattr(
        F, 'scaled_dot_product_attention', lambda *args, **kwargs: calls.append(args)
    )
    with reference_only():
        biased_attention(x, x, x, backend='sdpa')

    assert calls


def choose():
    return resolve_backend('auto', ('auto', 'reference'))


def test_reference_only_does_not_affect_other_threads():
    chosen = []

    with reference_only():
        thread = Thread(target=lambda: chosen.append(choose()))
        thread.start()
        thread.join()
        chosen.append(choose())

    assert chosen == ['auto', 'reference']


def test_reference_only_holds_for_its_context():
    with reference_only():
        inside = copy_context()

    assert choose() == 'auto'
    assert inside.run(choose) == 'reference'


def test_reference_only_can_be_nested():
    with reference_only():
        with reference_only():
            pass
        assert choose() == 'reference'
    assert choose() == 'auto'


def test_an_unknown_backend_is_rejected_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"backend must be one of \('auto', 'fast'\); got 'slow'"
    ):
        resolve_backend('slow', ('auto', 'fast'))


def test_reference_only_is_compiled_in():
    x = torch.randn(1, CPU.math_max_logits, 2)
    torch.compiler.reset()
    compiled = torch.compile(biased_attention, fullgraph=True, backend='eager')

    with reference_only():
        torch.testing.assert_close(compiled(x, x, x), biased_attention(x, x, x))


def test_sizes_are_known_where_torch_cannot_report_them(monkeypatch):
    monkeypatch.setattr(_backend, '_is_compiling', lambda: True)
    monkeypatch.delattr(symbolic_shapes, 'has_static_value', raising=False)

    assert not _backend.is_symbolic(3, 4)
