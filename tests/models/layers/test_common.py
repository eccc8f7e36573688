import pytest
import torch
import torch.nn.functional as F

from mmsparse.models.layers import Mlp2d, PatchConv2d


def test_the_mlp_convolves_its_hidden_map_before_gelu():
    mlp, x = Mlp2d(4, ratio=2, local_kernel=3), torch.rand(2, 4, 5, 7)
    weights = [fc.weight[..., None, None] for fc in (mlp.fc1, mlp.fc2)]
    hidden = mlp.local(F.conv2d(x, weights[0], mlp.fc1.bias))

    expected = F.conv2d(F.gelu(hidden), weights[1], mlp.fc2.bias)

    torch.testing.assert_close(mlp(x), expected)


@pytest.mark.parametrize(
    ('size', 'expected'), [((8, 12), (2, 3)), ((11, 7), (2, 1)), ((3, 5), (1, 1))]
)
def test_patches_drop_what_is_left_over(size, expected):
    conv, x = PatchConv2d(3, 6, patch_size=4), torch.rand(1, 3, *size)

    out = conv(x)

    assert out.shape == (1, 6, *expected)
    corner = F.pad(x, (0, 4, 0, 4))[..., :4, :4]
    torch.testing.assert_close(out[..., :1, :1], conv(corner))
