"""The fused MLP equals its equation in values and in all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmsparse.ops import reference_only
from mmsparse.ops._mlp import fused_mlp, suits_fused_mlp

KERNELS = [None, (3, 3), (5, 5), (3, 1)]
SHAPES = [(3, 5, 7), (1, 1, 1), (2, 33, 35)]  # few and many tokens


def tensors(shape=(3, 5, 7), kernel=(3, 3), bias=True):
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes):
        x = torch.randn(sizes, generator=generator) / 2
        return x.requires_grad_()

    x, fc1, fc2 = draw(*shape, 6), [draw(16, 6)], [draw(5, 16)]
    conv = None if kernel is None else [draw(16, 1, *kernel)]
    for layer, channels in ((fc1, 16), (fc2, 5), (conv, 16)):
        if layer is not None:
            layer.append(draw(channels) if bias else None)
    return x, fc1, fc2, conv


def equation(x, fc1, fc2, conv=None, residual=False):
    h = F.linear(x, *fc1)
    if conv is not None:
        kernels, bias = conv
        padding = [length // 2 for length in kernels.shape[-2:]]
        y = F.conv2d(h.permute(0, 3, 1, 2), kernels, bias, 1, padding, groups=16)
        y = y.permute(0, 2, 3, 1)
        h = h + y if residual else y
    return F.linear(F.gelu(h), *fc2)


def flat(x, fc1, fc2, conv):
    return [y for y in (x, *fc1, *fc2, *(conv or ())) if y is not None]


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('residual', [True, False])
@pytest.mark.parametrize('kernel', KERNELS, ids=str)
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_values_and_gradients_are_those_of_the_equation(
    shape, kernel, residual, bias, on_cpu
):
    on_cpu(chunk_numel=2 * shape[1] * shape[2] * 16)  # two images, and one
    inputs = tensors(shape, kernel, bias)
    expected = equation(*inputs, residual)
    cotangent = torch.randn_like(expected).mT.contiguous().mT  # with other strides
    grads = torch.autograd.grad(expected, flat(*inputs), cotangent)

    actual = fused_mlp(*inputs, residual)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, flat(*inputs), cotangent),
        grads,
        atol=1e-4,
        rtol=1e-4,
    )
    with torch.no_grad():
        torch.testing.assert_close(fused_mlp(*inputs, residual), expected)


@pytest.mark.parametrize(
    ('kernel', 'position'),
    [(None, i) for i in range(5)]
    + [(k, i) for k in [(3, 3), (5, 5)] for i in range(7)],
    ids=str,
)
def test_each_tensor_can_be_the_only_one_with_a_gradient(position, kernel):
    inputs = tensors(kernel=kernel)
    variables = flat(*inputs)
    for y in variables:
        y.requires_grad_(y is variables[position])

    (actual,) = torch.autograd.grad(fused_mlp(*inputs).sum(), variables[position])
    (expected,) = torch.autograd.grad(equation(*inputs).sum(), variables[position])

    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_the_gradient_has_a_gradient():
    inputs = tensors()

    def second(run):
        grads = torch.autograd.grad(
            run(*inputs, True).sin().sum(), flat(*inputs), create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in grads), flat(*inputs))

    torch.testing.assert_close(
        second(fused_mlp), second(equation), atol=1e-3, rtol=1e-3
    )


def test_keeps_the_hidden_features_once():
    inputs, saved = tensors(), []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda y: saved.append(y) or y, lambda y: y
    ):
        fused_mlp(*inputs)

    large = [y for y in saved if y.numel() >= 3 * 5 * 7 * 16]
    assert len(large) == 1


def suits(x, grad=False):
    x = x.requires_grad_() if grad else x
    with torch.set_grad_enabled(grad):
        return suits_fused_mlp(x, torch.rand(16, 6), torch.rand(6, 16))


def test_is_for_single_precision_on_a_cpu_and_nothing_that_records(on_cpu):
    x = torch.rand(2, 6, 5, 7)
    on_cpu(checkpoint_min_numel=2 * 5 * 7 * 16)
    assert suits(x)
    assert suits(x.clone(), grad=True)
    assert not suits(x.double())
    assert not suits(x.to('meta'))
    with reference_only():
        assert not suits(x)
    with torch.autocast('cpu', torch.bfloat16):
        assert not suits(x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not suits(x)
    with FlopCounterMode(display=False):
        assert not suits(x)
    found = []
    torch.func.grad(lambda y: found.append(suits_fused_mlp(y, y, y)) or y.sum())(x)
    assert found == [False]


def test_small_hidden_features_are_kept_for_a_backward_pass(on_cpu):
    x = torch.rand(2, 6, 5, 7)
    on_cpu(checkpoint_min_numel=2 * 5 * 7 * 16 + 1)

    assert suits(x)
    assert not suits(x.clone(), grad=True)
