import pytest
import torch
import torch.nn.functional as F

from mmsparse.models.layers.mlp import Mlp2d
from mmsparse.ops import reference_only

KERNELS = [(0, False), (3, False), (3, True), (5, False)]


@pytest.mark.parametrize(('kernel_size', 'residual'), KERNELS)
def test_the_mlp_equals_its_equation(kernel_size, residual):
    mlp = Mlp2d(8, 12, kernel_size, residual)
    x = torch.rand(2, 8, 5, 7)
    hidden = F.conv2d(x, mlp.fc1.weight[..., None, None], mlp.fc1.bias)
    if kernel_size:
        kernels, bias = mlp.dwconv.weight, mlp.dwconv.bias
        conv = F.conv2d(hidden, kernels, bias, padding=kernel_size // 2, groups=12)
        hidden = hidden + conv if residual else conv

    expected = F.conv2d(F.gelu(hidden), mlp.fc2.weight[..., None, None], mlp.fc2.bias)

    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize(('kernel_size', 'residual'), KERNELS)
def test_chunks_and_checkpointing_change_neither_values_nor_gradients(
    kernel_size, residual
):
    mlp = Mlp2d(2, 64, kernel_size, residual)
    x = torch.rand(3, 2, 256, 256, requires_grad=True)  # one image per chunk

    def run():
        out = mlp(x)
        loss = out.square().mean()
        return out, torch.autograd.grad(loss, [x, *mlp.parameters()])

    chunked = run()
    with reference_only():
        torch.testing.assert_close(chunked, run())


@pytest.mark.parametrize('name', ['fc1', 'dwconv', 'fc2'])
def test_hooks_on_its_layers_have_effect(name):
    mlp, x = Mlp2d(8, 12, kernel_size=3), torch.rand(2, 8, 5, 7)
    mlp.get_submodule(name).register_forward_hook(lambda module, args, out: 0 * out)
    bias = mlp.fc2.bias[:, None, None]

    with torch.no_grad():
        expected = {'fc1': None, 'dwconv': bias, 'fc2': 0 * bias}[name]
        if expected is None:  # the convolution of zeros is its bias
            expected = mlp.fc2(F.gelu(mlp.dwconv.bias))[:, None, None]
        torch.testing.assert_close(mlp(x), expected.expand(2, 8, 5, 7))


@pytest.mark.parametrize('kernel_size', [0, 3])
def test_an_empty_batch_has_an_empty_result(kernel_size):
    mlp = Mlp2d(8, 12, kernel_size)
    with torch.no_grad():
        assert mlp(torch.rand(0, 8, 5, 7)).shape == (0, 8, 5, 7)
