import pytest
import torch
from torch import nn

from mmsparse.models.layers.block import DropPath, TransformerBlock2d


@pytest.mark.parametrize('post_norm', [False, True])
@pytest.mark.parametrize('pos_kernel', [0, 3])
@pytest.mark.parametrize('layer_scale', [None, 0.3])
def test_a_block_is_the_sum_of_its_branches(layer_scale, pos_kernel, post_norm):
    block = TransformerBlock2d(
        nn.Conv2d(16, 16, kernel_size=1),
        channels=16,
        mlp_ratio=2.5,
        layer_scale=layer_scale,
        pos_kernel=pos_kernel,
        post_norm=post_norm,
    )
    x, scale = torch.rand(2, 16, 5, 7), 1 if layer_scale is None else layer_scale
    y = block.pos_conv(x)
    if post_norm:
        y = block.norm1(y + scale * block.attn(y))
        expected = block.norm2(y + scale * block.mlp(y))
    else:
        y = y + scale * block.attn(block.norm1(y))
        expected = y + scale * block.mlp(block.norm2(y))

    torch.testing.assert_close(block(x), expected)
    assert block.mlp.fc1.out_features == 40


def test_drop_path_keeps_the_mean_over_samples():
    torch.manual_seed(0)
    drop_path, x = DropPath(0.25), torch.ones(4000, 1, 1, 1)

    out = drop_path(x)

    assert out.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(x), x)
