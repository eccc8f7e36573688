import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import add_detail
from mmsparse.ops.detail import BACKENDS


def random_inputs(size, kernel=3, dtype=torch.float64):
    shapes = (2, 4, *size), (4, 1, kernel, kernel), (4,)
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def position_by_position(x, weight, bias):
    reach = weight.shape[-1] // 2
    out = torch.empty_like(x)
    for y in range(x.shape[2]):
        for z in range(x.shape[3]):
            total = x[..., y, z] + bias
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    if 0 <= y + i < x.shape[2] and 0 <= z + j < x.shape[3]:
                        tap = weight[:, 0, reach + i, reach + j]
                        total = total + tap * x[..., y + i, z + j]
            out[..., y, z] = total
    return out


@pytest.mark.parametrize('kernel', [1, 3, 5])
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (1, 6)], ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
def test_adds_weighted_neighbours_in_value_and_gradient(backend, size, kernel):
    inputs = random_inputs(size, kernel)
    expected = position_by_position(*inputs)
    cotangent = torch.randn_like(expected)

    actual = add_detail(*inputs, backend=backend)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    inputs = random_inputs((3, 2))

    assert gradcheck(lambda *args: add_detail(*args, backend=backend), inputs)


def test_half_precision_keeps_the_digits_of_the_kernel():
    # The kernel is lost next to 1: 1 + 2**-8 is 1 in bfloat16.
    x, weight = (torch.full((1, 1, 1, 1), a).bfloat16() for a in (1.0, 2**-8))
    bias = -torch.ones(1).bfloat16()

    assert add_detail(x, weight, bias).item() == 2**-8
    assert add_detail(x, weight, bias, backend='folded').item() == 0


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'folded'.*got 'fast'"):
        add_detail(*random_inputs((1, 1)), backend='fast')
