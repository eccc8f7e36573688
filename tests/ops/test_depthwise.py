import pytest
import torch

from mmsparse.ops import reference_only
from mmsparse.ops._depthwise import BACKENDS, depthwise_conv2d

FAST = [backend for backend in BACKENDS if backend != 'reference']


def inputs(
    kernel=(5, 5), size=(7, 9), batch=2, channels=6, bias=True, dtype=torch.float64
):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=dtype)

    x = draw(batch, channels, *size).contiguous(memory_format=torch.channels_last)
    tensors = [x, draw(channels, 1, *kernel)]
    if bias:
        tensors.append(draw(channels))
    return [tensor.requires_grad_() for tensor in tensors]


def oracle(x, weight, bias):
    """Sum the shifted feature map over the entries of the kernel."""
    height, width = weight.shape[-2:]
    out = torch.zeros_like(x) + bias[:, None, None]
    padded = torch.nn.functional.pad(
        x, (width // 2, width // 2, height // 2, height // 2)
    )
    for i in range(height):
        for j in range(width):
            shifted = padded[..., i : i + x.shape[-2], j : j + x.shape[-1]]
            out = out + weight[:, :, i, j].unsqueeze(-1) * shifted
    return out


@pytest.mark.parametrize('backend', BACKENDS)
def test_every_backend_convolves_channel_by_channel(backend):
    x, weight, bias = inputs()

    out = depthwise_conv2d(x, weight, bias, backend=backend)

    torch.testing.assert_close(out, oracle(x, weight, bias))


@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('kernel', [(1, 1), (3, 3), (5, 5), (3, 7), (9, 1), (11, 11)])
@pytest.mark.parametrize('backend', FAST)
def test_values_and_gradients_are_those_of_the_reference(
    backend, kernel, bias, residual
):
    tensors = inputs(kernel, bias=bias)

    def run(backend):
        out = depthwise_conv2d(*tensors, residual=residual, backend=backend)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    torch.testing.assert_close(run(backend), run('reference'))


@pytest.mark.parametrize('kernel', [(5, 5), (1, 7), (11, 11)])
@pytest.mark.parametrize('size', [(1, 1), (1, 8), (8, 1), (2, 3)])
def test_feature_maps_smaller_than_the_kernel(size, kernel):
    tensors = inputs(kernel, size=size, batch=1)

    def run(backend):
        out = depthwise_conv2d(*tensors, residual=True, backend=backend)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    torch.testing.assert_close(run('tiled'), run('reference'))


def test_tiles_have_gradients_of_gradients():
    tensors = inputs(size=(3, 4), channels=2, batch=1)

    assert torch.autograd.gradgradcheck(
        lambda *x: depthwise_conv2d(*x, backend='tiled'), tensors
    )


def test_the_default_is_the_reference_in_single_precision():
    tensors = inputs(dtype=torch.float32)

    def run():
        out = depthwise_conv2d(*tensors, residual=True)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    fast = run()
    with reference_only():
        expected = run()
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-4)


def test_the_residual_is_added_in_full_precision_under_autocast():
    x, weight, _ = inputs(dtype=torch.float32)
    small = weight.detach() / 1000  # one plus these would be one in bfloat16

    with torch.autocast('cpu', torch.bfloat16):
        out = depthwise_conv2d(x, small, residual=True)

    exact = depthwise_conv2d(x, small, residual=True)
    torch.testing.assert_close(out - x, exact - x, rtol=0.05, atol=1e-3)
    assert out.dtype == torch.float32


def test_the_output_keeps_channels_last_storage():
    x, weight, bias = inputs(dtype=torch.float32)
    out = depthwise_conv2d(x, weight, bias, residual=True)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_compiles_without_graph_breaks():
    tensors = inputs(dtype=torch.float32)
    compiled = torch.compile(depthwise_conv2d, backend='aot_eager', fullgraph=True)

    def run(convolve):
        out = convolve(*tensors, residual=True)
        return out, *torch.autograd.grad(out.square().sum(), tensors)

    torch.testing.assert_close(run(compiled), run(depthwise_conv2d))


def test_an_even_kernel_is_rejected():
    x, *_ = inputs()
    with pytest.raises(
        ValueError, match='weight must have kernels of odd height and width.*got 4x3'
    ):
        depthwise_conv2d(x, torch.zeros(6, 1, 4, 3))


def test_an_unknown_backend_is_rejected():
    with pytest.raises(ValueError, match="backend must be one of.*got 'fast'"):
        depthwise_conv2d(*inputs(), backend='fast')
