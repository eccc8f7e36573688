import pytest
import torch
import torch.nn.functional as F

from mmsparse.ops import _linear, reference_only
from mmsparse.ops._devices import CPU
from mmsparse.ops._linear import BACKENDS, linear_map


def random_inputs(size, bias=True, dtype=torch.float64):
    shapes = [(2, *size, 3), (5, 3), *([(5,)] if bias else [])]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize('bias', [True, False], ids=['bias', 'no bias'])
@pytest.mark.parametrize('size', [(1, 1), (5, 7), (33, 31)], ids=str)
@pytest.mark.parametrize('backend', BACKENDS)
def test_projects_every_token_in_value_and_gradient(backend, size, bias):
    inputs = random_inputs(size, bias)
    expected = torch.einsum('bhwc,dc->bhwd', *inputs[:2])
    if bias:
        expected = expected + inputs[2]
    cotangent = torch.randn_like(expected)

    actual = linear_map(*inputs, backend=backend)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
    )


def test_the_result_is_contiguous_as_channels_last():
    inputs = random_inputs((33, 31), dtype=torch.float32)

    assert linear_map(*inputs, backend='convolution').is_contiguous()


@pytest.mark.parametrize(
    ('height', 'dtype', 'expected'),
    [
        (CPU.convolution_min_tokens, torch.float32, 1),
        (1, torch.float32, 0),
        (CPU.convolution_min_tokens, torch.float64, 0),
    ],
    ids=['many', 'few', 'double'],
)
def test_auto_chooses_a_convolution_for_many_tokens_in_single_precision(
    monkeypatch, height, dtype, expected
):
    calls = []
    convolve = F.conv2d
    monkeypatch.setattr(
        _linear.F, 'conv2d', lambda *args: calls.append(args) or convolve(*args)
    )
    inputs = random_inputs((height, 1), dtype=dtype)

    linear_map(*inputs)
    with reference_only():
        linear_map(*inputs)

    assert len(calls) == expected


def test_runs_under_autocast():
    inputs = random_inputs((33, 31), dtype=torch.float32)

    with torch.autocast('cpu', torch.bfloat16):
        rounded = linear_map(*inputs)

    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(
        rounded.float(), linear_map(*inputs), atol=5e-2, rtol=5e-2
    )


def test_an_unknown_backend_is_rejected():
    with pytest.raises(ValueError, match="'convolution'.*got 'fast'"):
        linear_map(*random_inputs((1, 1)), backend='fast')
