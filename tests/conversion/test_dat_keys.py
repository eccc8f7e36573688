import pytest
import torch
from torch import nn

from mmsparse.conversion.dat import convert_tensor, official_key, rename_key
from mmsparse.conversion.families import FAMILIES
from mmsparse.models import DAT
from mmsparse.models.classifier import Classifier

ENTRIES = {  # official classifiers, without buffers
    'tiny': 219 - 8 - 2,
    'small': 435 - 14 - 2,
    'base': 435 - 14 - 2,
    'base-384': 435 - 14 - 2,
    'pp-tiny': 589,
    'pp-small': 589,
    'pp-base': 589,
}


def classifier(arch):
    with torch.device('meta'):
        return Classifier(DAT(arch), 10)


def mmsparse_keys(model):
    return [key.removeprefix('backbone.') for key in model.state_dict()]


@pytest.mark.parametrize('arch', DAT.arch_settings)
def test_rename_key_is_the_inverse_of_official_key(arch):
    keys = mmsparse_keys(classifier(arch))

    official = [FAMILIES['dat'].official_key(key, arch) for key in keys]

    assert [rename_key(key) for key in official] == keys
    assert len(set(official)) == len(official)


@pytest.mark.parametrize(('arch', 'entries'), ENTRIES.items())
def test_classifiers_have_the_official_number_of_entries(arch, entries):
    assert len(mmsparse_keys(classifier(arch))) == entries


def test_dense_norms_have_the_official_names():
    with torch.device('meta'):
        backbone = DAT('pp-tiny', out_indices=(0, 1, 2, 3), out_norm='layer')
    keys = list(backbone.state_dict())

    official = [FAMILIES['dat'].official_key(key, 'pp-tiny') for key in keys]

    assert [rename_key(key) for key in official] == keys
    assert len(keys) == 593
    assert rename_key('norms.2.norm.weight') == 'out_norms.layer2.weight'


@pytest.mark.parametrize(
    ('block_type', 'official', 'key'),
    [
        ('', 'patch_proj.0.weight', 'downsamples.0.0.weight'),
        ('', 'patch_proj.4.norm.bias', 'downsamples.0.4.bias'),
        ('', 'down_projs.1.0.weight', 'downsamples.2.0.weight'),
        ('', 'down_projs.1.1.norm.bias', 'downsamples.2.1.bias'),
        ('', 'stages.0.proj.weight', 'downsamples.0.proj.weight'),
        ('', 'stages.2.layer_norms.7.norm.bias', 'stages.2.3.norm2.bias'),
        ('', 'stages.2.layer_scales.6.weight', 'stages.2.3.layer_scale1.weight'),
        ('', 'stages.2.local_perception_units.9.bias', 'stages.2.9.pos_conv.bias'),
        ('', 'stages.1.mlps.0.linear2.0.weight', 'stages.1.0.mlp.fc2.weight'),
        ('', 'stages.1.mlps.0.dwc.weight', 'stages.1.0.mlp.dwconv.weight'),
        ('L', 'stages.1.attns.1.proj_qkv.bias', 'stages.1.1.attn.qkv.bias'),
        ('S', 'stages.1.attns.1.proj_out.bias', 'stages.1.1.attn.proj.bias'),
        (
            'S',
            'stages.1.attns.1.relative_position_bias_table',
            'stages.1.1.attn.relative_position_bias_table',
        ),
        ('N', 'stages.1.attns.1.proj.bias', 'stages.1.1.attn.proj.bias'),
        (
            'N',
            'stages.1.attns.1.rpb',
            'stages.1.1.attn.relative_position_bias_table',
        ),
        ('D', 'stages.1.attns.1.proj_q.bias', 'stages.1.1.attn.q.bias'),
        (
            'D',
            'stages.1.attns.1.rpe_table',
            'stages.1.1.attn.relative_position_bias_table',
        ),
        (
            'D',
            'stages.1.attns.1.rpe_table.2.weight',
            'stages.1.1.attn.cpb_mlp.2.weight',
        ),
        ('D', 'stages.1.attns.1.rpe_table.bias', 'stages.1.1.attn.lepe.bias'),
        (
            'D',
            'stages.1.attns.1.conv_offset.1.norm.weight',
            'stages.1.1.attn.conv_offset.1.weight',
        ),
        ('', 'cls_norm.norm.weight', 'out_norms.class3.weight'),
        ('', 'cls_head.weight', 'head.fc.weight'),
    ],
)
def test_keys_are_renamed_in_both_directions(block_type, official, key):
    assert rename_key(official) == key
    assert official_key(key, block_type) == official


def test_the_mlp_without_convolution_has_other_official_names():
    official = 'stages.1.mlps.0.chunk.linear1.weight'

    assert rename_key(official) == 'stages.1.0.mlp.fc1.weight'
    assert official_key('stages.1.0.mlp.fc1.weight', conv_mlp=False) == official


@pytest.mark.parametrize(
    ('official', 'key'),
    [
        ('stages.2.layer_scales.6.gamma', 'stages.2.3.layer_scale1.weight'),
        ('stages.1.mlps.0.linear1.bias', 'stages.1.0.mlp.fc1.bias'),
    ],
)
def test_other_official_names_are_recognized(official, key):
    assert rename_key(official) == key


@pytest.mark.parametrize('name', ['relative_position_index', 'attn_mask'])
def test_official_buffers_are_dropped(name):
    assert rename_key(f'stages.0.attns.1.{name}') is None


def test_1x1_convolutions_of_projections_become_linear_weights():
    conv = nn.Conv2d(4, 6, 1).weight

    assert convert_tensor('stages.0.attns.1.proj_out.weight', conv).shape == (6, 4)
    assert convert_tensor('stages.0.mlps.1.linear1.0.weight', conv).shape == (6, 4)
    assert convert_tensor('proj_out.weight', conv.flatten(1)).shape == (6, 4)
    assert convert_tensor('conv_offset.0.weight', conv) is conv
    assert convert_tensor('stages.0.proj.weight', conv) is conv
