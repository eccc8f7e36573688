import torch
import torch.nn.functional as F

from mmsparse.models.layers import Mlp2d


def test_the_mlp_convolves_its_hidden_map_before_gelu():
    mlp, x = Mlp2d(4, ratio=2, local_kernel=3), torch.rand(2, 4, 5, 7)
    weights = [fc.weight[..., None, None] for fc in (mlp.fc1, mlp.fc2)]
    hidden = mlp.local(F.conv2d(x, weights[0], mlp.fc1.bias))

    expected = F.conv2d(F.gelu(hidden), weights[1], mlp.fc2.bias)

    torch.testing.assert_close(mlp(x), expected)
