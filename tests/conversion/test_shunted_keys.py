import re

import pytest
import torch

from mmsparse.conversion.shunted import official_key, rename_key
from mmsparse.models import ShuntedTransformer

ARCHS = ('tiny', 'small', 'base')
BATCHNORM = r'(weight|bias|running_mean|running_var|num_batches_tracked)'
OFFICIAL = (
    r'patch_embed1\.conv\.0\.weight',
    rf'patch_embed1\.conv\.(1|4|7)\.{BATCHNORM}',
    r'patch_embed1\.conv\.(3|6|9)\.(weight|bias)',
    r'patch_embed[234]\.proj\.(weight|bias)',
    r'patch_embed[1-4]\.norm\.(weight|bias)',
    r'block[1-4]\.\d+\.norm[12]\.(weight|bias)',
    r'block[1-4]\.\d+\.attn\.(q|proj)\.(weight|bias)',
    r'block[123]\.\d+\.attn\.(sr|norm|kv|local_conv)[12]\.(weight|bias)',
    r'block4\.\d+\.attn\.(kv|local_conv)\.(weight|bias)',
    r'block[1-4]\.\d+\.mlp\.(fc1|fc2|dwconv\.dwconv)\.(weight|bias)',
    r'norm[1-4]\.(weight|bias)',
)


def keys_of(arch):
    with torch.device('meta'):
        return list(ShuntedTransformer(arch).state_dict())


@pytest.mark.parametrize('arch', ARCHS)
def test_rename_key_is_the_inverse_of_official_key(arch):
    keys = keys_of(arch)

    official = [official_key(key) for key in keys]

    unknown = [
        key for key in official if not any(re.fullmatch(name, key) for name in OFFICIAL)
    ]
    assert unknown == []
    assert len(set(official)) == len(keys)
    assert [rename_key(key) for key in official] == keys


@pytest.mark.parametrize(
    ('arch', 'entries'), [('tiny', 260), ('small', 596), ('base', 1010)]
)
def test_backbones_have_the_official_number_of_entries(arch, entries):
    head = ('head.weight', 'head.bias')

    assert len(keys_of(arch)) + len(head) == entries


@pytest.mark.parametrize(
    ('official', 'key'),
    [
        ('norm1.bias', 'stages.0.norm.bias'),
        ('block1.0.norm1.bias', 'stages.0.0.norm1.bias'),
        ('block1.0.attn.norm1.bias', 'stages.0.0.attn.coarse.norm.bias'),
        ('block3.11.attn.sr2.weight', 'stages.2.11.attn.fine.reduce.weight'),
        ('block4.0.attn.kv.weight', 'stages.3.0.attn.kv.weight'),
        ('block2.1.attn.kv2.weight', 'stages.1.1.attn.fine.kv.weight'),
        ('block4.1.attn.local_conv.bias', 'stages.3.1.attn.lepe.bias'),
        ('block2.3.mlp.dwconv.dwconv.bias', 'stages.1.3.mlp.dwconv.bias'),
        ('patch_embed1.conv.3.weight', 'downsamples.0.conv.3.weight'),
        ('patch_embed4.norm.bias', 'downsamples.3.norm.bias'),
    ],
)
def test_keys_are_renamed_in_both_directions(official, key):
    assert rename_key(official) == key
    assert official_key(key) == official
