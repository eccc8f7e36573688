"""Backbones under torch.func, in int8 and in bfloat16."""

import pytest
import torch
from tiny_backbones import ARCHS, build
from torch import nn
from torch.func import functional_call, grad, vmap


@pytest.mark.parametrize('name', ARCHS)
def test_gradients_of_each_sample_equal_a_loop(name, on_cpu):
    on_cpu(gather_numel=64)  # an autograd function, but here
    model = build(name).eval()
    weights = {n: x.detach() for n, x in model.named_parameters()}
    images = torch.rand(3, 3, 64, 64)

    def loss(weights, image):
        return functional_call(model, weights, (image[None],))[-1].square().mean()

    found = vmap(grad(loss), in_dims=(None, 0))(weights, images)

    for i, image in enumerate(images):
        model.zero_grad()
        model(image[None])[-1].square().mean().backward()
        for n, weight in model.named_parameters():
            if weight.grad is not None:
                torch.testing.assert_close(
                    found[n][i], weight.grad, rtol=1e-3, atol=1e-6, msg=n
                )


def relative_error(found, expected):
    return ((found.float() - expected).norm() / expected.norm()).item()


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
@pytest.mark.parametrize('name', ARCHS)
def test_dynamic_quantization_takes_every_linear_layer(name):
    model, x = build(name).eval(), torch.rand(2, 3, 96, 96)

    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    assert [n for n, x in quantized.named_modules() if type(x) is nn.Linear] == []
    error = relative_error(quantized(x)[-1], model(x)[-1])
    assert 0 < error < 0.05


@pytest.mark.parametrize('name', ARCHS)
def test_bfloat16_is_close_to_float32(name):
    model, x = build(name).eval(), torch.rand(2, 3, 96, 96)
    expected = model(x)[-1]

    found = model.bfloat16()(x.bfloat16())[-1]

    assert found.dtype == torch.bfloat16
    assert relative_error(found, expected) < 0.03
