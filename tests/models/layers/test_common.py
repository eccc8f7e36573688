import pytest
import torch
import torch.nn.functional as F

from mmsparse.models.layers.common import DepthwiseConv2d, Linear


@pytest.mark.parametrize('residual', [False, True])
def test_a_depthwise_convolution_may_have_a_residual_connection(residual):
    conv, x = DepthwiseConv2d(4, 5, residual), torch.rand(2, 4, 6, 7)

    expected = F.conv2d(x, conv.weight, conv.bias, padding=2, groups=4)
    if residual:
        expected = expected + x

    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize('side', [3, 40])  # few tokens and many
def test_a_linear_layer_equals_that_of_torch(side):
    linear, x = Linear(4, 6), torch.rand(1, side, side, 4)

    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))
