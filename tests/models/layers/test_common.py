import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize, prune

from mmsparse.models.layers.common import DepthwiseConv2d, project


@pytest.mark.parametrize('residual', [False, True])
def test_a_depthwise_convolution_may_have_a_residual_connection(residual):
    conv, x = DepthwiseConv2d(4, 5, residual), torch.rand(2, 4, 6, 7)

    expected = F.conv2d(x, conv.weight, conv.bias, padding=2, groups=4)
    if residual:
        expected = expected + x

    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize('side', [3, 40])  # few tokens and many
def test_a_projection_equals_the_linear_layer(side):
    linear, x = nn.Linear(4, 6), torch.rand(1, side, side, 4)

    torch.testing.assert_close(project(linear, x), linear(x))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


def with_hook(linear):
    linear.register_forward_hook(lambda module, args, out: out + 1)
    return linear


def with_pruned_weights(linear):
    return prune.l1_unstructured(linear, 'weight', amount=0.5)


def with_another_forward(linear):
    forward = linear.forward
    linear.forward = lambda x: forward(x) + 1  # as accelerate does
    return linear


CHANGES = {
    'subclass': lambda linear: Doubled(4, 6),
    'hook': with_hook,
    'pruning': with_pruned_weights,
    'forward': with_another_forward,
    'parametrization': lambda linear: parametrize.register_parametrization(
        linear, 'weight', Halved()
    ),
    'int8': lambda linear: torch.ao.quantization.quantize_dynamic(
        nn.Sequential(linear), {nn.Linear}
    )[0],
}


@pytest.mark.filterwarnings('ignore:torch.ao.quantization is deprecated')
@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_what_a_library_does_to_a_linear_layer_has_effect(change):
    linear, x = nn.Linear(4, 6), torch.rand(1, 40, 40, 4)
    plain = linear(x)

    changed = change(linear)

    assert torch.equal(project(changed, x), changed(x))
    assert not torch.equal(changed(x), plain)


def test_hooks_on_all_modules_see_linear_layers():
    seen = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: seen.append(type(module))
    )

    project(nn.Linear(4, 6), torch.rand(1, 40, 40, 4))
    handle.remove()

    assert seen == [nn.Linear]
