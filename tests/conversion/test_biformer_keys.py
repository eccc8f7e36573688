import pytest
import torch
from parity.biformer import official_tensor

from mmsparse.conversion.biformer import (
    LAYOUTS,
    convert_tensor,
    official_key,
    rename_key,
)
from mmsparse.models import BiFormer

ENTRIES = {  # of the official state dicts, the classifier's two among them
    'tiny': 264,
    'small': 518,
    'base': 518,
    'stl': 201,
    'stl-nchw': 201,
}
OFFICIAL = {  # mmsparse's key by the official one, per layout
    'biformer': {
        'downsample_layers.0.3.weight': 'downsamples.0.3.weight',
        'stages.1.0.pos_embed.bias': 'stages.1.0.pos_conv.bias',
        'stages.2.3.norm1.weight': 'stages.2.3.norm1.weight',
        'stages.0.1.attn.qkv.qkv.bias': 'stages.0.1.attn.qkv.bias',
        'stages.0.1.attn.wo.weight': 'stages.0.1.attn.proj.weight',
        'stages.0.1.attn.lepe.weight': 'stages.0.1.attn.lepe.weight',
        'stages.3.1.attn.qkv.weight': 'stages.3.1.attn.qkv.weight',
        'stages.3.1.attn.proj.bias': 'stages.3.1.attn.proj.bias',
        'stages.3.1.attn.lepe.bias': 'stages.3.1.attn.lepe.bias',
        'stages.3.1.mlp.0.weight': 'stages.3.1.mlp.fc1.weight',
        'stages.3.1.mlp.3.bias': 'stages.3.1.mlp.fc2.bias',
        'norm.running_var': 'out_norms.batch3.running_var',
        'extra_norms.2.weight': 'out_norms.layer2.weight',
        # Options that no released model has.
        'stages.0.1.gamma2': 'stages.0.1.layer_scale2.weight',
        'stages.0.1.mlp.1.dwconv.weight': 'stages.0.1.mlp.dwconv.weight',
        'stages.0.1.attn.router.emb.bias': 'stages.0.1.attn.router.bias',
        'stages.3.1.attn.2.weight': 'stages.3.1.attn.1.weight',
    },
    'stl': {
        'downsample_layers.1.0.running_mean': 'downsamples.1.0.running_mean',
        'stages.0.blocks.1.attn.qkv.qkv.weight': 'stages.0.1.attn.qkv.weight',
        'stages.0.blocks.1.attn.wo.bias': 'stages.0.1.attn.proj.bias',
        'stages.3.blocks.0.attn.qkv.weight': 'stages.3.0.attn.qkv.weight',
        'stages.3.blocks.0.mlp.0.weight': 'stages.3.0.mlp.fc1.weight',
        'stages.3.blocks.0.mlp.2.weight': 'stages.3.0.mlp.fc2.weight',
    },
    'stl-nchw': {
        'stages.0.blocks.1.attn.qkv_linear.bias': 'stages.0.1.attn.qkv.bias',
        'stages.0.blocks.1.attn.output_linear.bias': 'stages.0.1.attn.proj.bias',
        'stages.3.blocks.0.attn.proj.bias': 'stages.3.0.attn.proj.bias',
        'stages.3.blocks.0.mlp.2.bias': 'stages.3.0.mlp.fc2.bias',
    },
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_keys_of_every_layout_are_renamed_in_both_directions(layout):
    for official, key in OFFICIAL[layout].items():
        assert rename_key(official) == key
        assert official_key(key, layout) == official


@pytest.mark.parametrize('out_norm', ['batch', 'layer'])
@pytest.mark.parametrize('arch', BiFormer.arch_settings)
def test_official_keys_and_tensors_convert_back(arch, out_norm):
    layout = arch if arch in LAYOUTS else 'biformer'
    with torch.device('meta'):
        state = BiFormer(arch, out_norm=out_norm).state_dict()

    official = {key: official_key(key, layout) for key in state}

    assert len(set(official.values())) == len(state)
    assert out_norm == 'layer' or len(state) + 2 == ENTRIES.get(arch, len(state) + 2)
    for key, name in official.items():
        assert rename_key(name) == key
        tensor = official_tensor(key, state[key], layout)
        assert convert_tensor(key, tensor).shape == state[key].shape


def test_1x1_convolutions_become_linear_weights_and_others_stay():
    key, weight = 'stages.0.1.attn.qkv.weight', torch.rand(6, 2, 1, 1)

    assert torch.equal(convert_tensor(key, weight), weight[..., 0, 0])
    assert torch.equal(
        official_tensor(key, weight[..., 0, 0], layout='stl-nchw'), weight
    )
    for other in ('stages.0.1.attn.lepe.weight', 'stages.0.1.attn.0.weight'):
        assert convert_tensor(other, weight) is weight


def test_the_last_norm_may_be_a_layer_norm():
    assert rename_key('norm.weight', last_norm='layer') == 'out_norms.layer3.weight'
