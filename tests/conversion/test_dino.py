import re
from functools import cache

import convert_checkpoint
import pytest
import torch
from mmdet.models.layers.transformer import PatchMerging
from mmengine.hub import get_config
from torch.nn import functional as F

from mmsparse.apis import build_model, register_host
from mmsparse.conversion import convert_official
from mmsparse.conversion.convert import convert
from mmsparse.conversion.dino import BOX_ENCODING
from mmsparse.onedl import has_wide_dino, widen_box_encoding

SWIN = dict(
    _delete_=True,
    type='SwinTransformer',
    embed_dims=24,
    num_heads=(1, 2, 4, 8),
    window_size=3,
    drop_path_rate=0.0,
    out_indices=(1, 2, 3),
)
# Keys of mmdet and detrex; the first that fits counts.
NAMES = (
    (r'backbone\.conv1\.(.*)', r'backbone.stem.conv1.\1'),
    (r'backbone\.bn1\.(.*)', r'backbone.stem.conv1.norm.\1'),
    (r'backbone\.layer1\.(.*)', r'backbone.res2.\1'),
    (r'backbone\.layer2\.(.*)', r'backbone.res3.\1'),
    (r'backbone\.layer3\.(.*)', r'backbone.res4.\1'),
    (r'backbone\.layer4\.(.*)', r'backbone.res5.\1'),
    (r'backbone\.patch_embed\.projection\.(.*)', r'backbone.patch_embed.proj.\1'),
    (r'backbone\.stages\.(.*)', r'backbone.layers.\1'),
    (r'(neck\..*)\.gn\.(.*)', r'\1.norm.\2'),
    (r'level_embed', 'transformer.level_embeds'),
    (r'query_embedding\.weight', 'transformer.tgt_embed.weight'),
    (r'memory_trans_fc\.(.*)', r'transformer.enc_output.\1'),
    (r'memory_trans_norm\.(.*)', r'transformer.enc_output_norm.\1'),
    (r'dn_query_generator\.label_embedding\.weight', 'label_enc.weight'),
    (r'bbox_head\.cls_branches\.(.*)', r'class_embed.\1'),
    (r'bbox_head\.reg_branches\.(\d)\.0\.(.*)', r'bbox_embed.\1.layers.0.\2'),
    (r'bbox_head\.reg_branches\.(\d)\.2\.(.*)', r'bbox_embed.\1.layers.1.\2'),
    (r'bbox_head\.reg_branches\.(\d)\.4\.(.*)', r'bbox_embed.\1.layers.2.\2'),
    (r'(.*)\.ffn\.layers\.(.*)', r'transformer.\1.ffns.0.layers.\2'),
    (r'(.*)\.self_attn\.(.*)', r'transformer.\1.attentions.0.\2'),
    (r'(.*)\.cross_attn\.(.*)', r'transformer.\1.attentions.1.\2'),
    (r'((?:encoder|decoder).*)', r'transformer.\1'),
    (r'(.*)', r'\1'),
)
WITHIN_BACKBONES = (
    (r'\.bn(\d)\.', r'.conv\1.norm.'),
    (r'\.downsample\.0\.', '.shortcut.'),
    (r'\.downsample\.1\.', '.shortcut.norm.'),
    (r'\.w_msa\.', '.'),
    (r'\.ffn\.layers\.0\.0\.', '.mlp.fc1.'),
    (r'\.ffn\.layers\.1\.', '.mlp.fc2.'),
)


def detrex_key(key):
    pattern, replacement = next(x for x in NAMES if re.fullmatch(x[0], key))
    name = re.fullmatch(pattern, key).expand(replacement)
    if name.startswith('backbone.'):
        for pattern, replacement in WITHIN_BACKBONES:
            name = re.sub(pattern, replacement, name)
    return name


@cache
def built(backbone):
    """mmdet's model with the neck of detrex."""
    register_host('mmdet')
    cfg = get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py')
    cfg.merge_from_dict(dict(model=dict(neck=dict(bias=True)), default_scope='mmdet'))
    if backbone == 'ResNet-101':
        cfg.model.backbone.depth = 101
        with torch.device('meta'):
            return build_model(cfg)
    neck = dict(in_channels=[48, 96, 192])
    small = dict(num_layers=2)
    cfg.merge_from_dict(
        dict(model=dict(backbone=SWIN, neck=neck, encoder=small, decoder=small))
    )
    return build_model(cfg)


def official_weights(backbone):
    """Numbered weights with the keys of detrex, and with its aliases."""
    official = {}
    for number, (key, tensor) in enumerate(built(backbone).state_dict().items()):
        if key.endswith('num_batches_tracked'):
            continue  # missing for frozen norms
        shape = tensor.shape
        if key == BOX_ENCODING and has_wide_dino():  # mmdet is OneDL's
            shape = (shape[0], shape[1] // 2)
        official[detrex_key(key)] = torch.tensor(float(number)).expand(shape)
    for name in list(official):
        if name.startswith(('class_embed.', 'bbox_embed.')):
            official[f'transformer.decoder.{name}'] = official[name]
    return official


@pytest.mark.parametrize(
    ('backbone', 'described'),
    [
        ('ResNet-101', 'ResNet-101'),
        ('Swin', 'Swin of 2, 2, 6, 2 blocks and width 24'),
    ],
    ids=['ResNet', 'Swin'],
)
def test_the_weights_of_detrex_become_those_of_mmdet(backbone, described):
    official = official_weights(backbone)

    found = convert({'model': {f'module.{k}': x for k, x in official.items()}})

    assert (found.family, found.arch) == ('dino', f'4 levels, {described}')
    assert 'neck=dict(bias=True)' in found.note
    built(backbone).load_state_dict(found.state_dict, strict=True, assign=True)
    for key, tensor in found.state_dict.items():
        expected = official[detrex_key(key)]
        if key == BOX_ENCODING and has_wide_dino():
            expected = widen_box_encoding(expected)
        assert torch.equal(tensor, expected), key


def test_patch_merging_computes_the_same():
    official = official_weights('Swin')
    name = 'backbone.layers.1.downsample'
    norm, bias = torch.randn(2, 192)
    reduction = torch.randn(96, 192)
    official |= {
        f'{name}.norm.weight': norm,
        f'{name}.norm.bias': bias,
        f'{name}.reduction.weight': reduction,
    }
    layer = PatchMerging(48, 96)
    prefix = 'backbone.stages.1.downsample.'
    layer.load_state_dict(
        {
            k.removeprefix(prefix): x
            for k, x in convert_official(official).items()
            if k.startswith(prefix)
        }
    )
    x = torch.randn(1, 4, 6, 48)

    actual, _ = layer(x.flatten(1, 2), (4, 6))

    pixels = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    merged = F.layer_norm(torch.cat(pixels, -1), (192,), norm, bias)
    expected = F.linear(merged, reduction).flatten(1, 2)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_fifth_level_is_computed_from_the_fourth():
    official = official_weights('ResNet-101')
    official['neck.extra_convs.1.conv.weight'] = torch.ones(256, 256, 3, 3)
    for name in ('conv.bias', 'norm.weight', 'norm.bias'):
        official[f'neck.extra_convs.1.{name}'] = torch.ones(256)
    official['transformer.level_embeds'] = torch.ones(5, 256)

    found = convert(official)

    assert found.arch.startswith('5 levels')
    assert found.state_dict['neck.extra_convs.1.gn.weight'].shape == (256,)


def test_the_backbone_may_be_missing_or_converted_alone():
    official = official_weights('Swin')
    without = {k: x for k, x in official.items() if not k.startswith('backbone.')}

    found, alone = convert(without), convert(official, backbone_only=True)

    assert found.arch == '4 levels'
    assert not any(k.startswith('backbone.') for k in found.state_dict)
    assert all(k.startswith('backbone.') for k in alone.state_dict)
    assert found.state_dict.keys() | alone.state_dict.keys() == {
        k for k in built('Swin').state_dict() if not k.endswith('batches_tracked')
    }


def test_the_command_prints_the_settings_that_the_weights_need(
    tmp_path, monkeypatch, capsys
):
    source, target = tmp_path / 'dino.pth', tmp_path / 'out.pth'
    torch.save({'model': official_weights('Swin')}, source)
    monkeypatch.setattr('sys.argv', ['convert', str(source), str(target)])

    convert_checkpoint.main()

    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith('dino 4 levels, Swin of 2, 2, 6, 2 blocks')
    assert lines[2:] == [
        f'written: {target}',
        'note: mmdet needs neck=dict(bias=True), and the temperature and offset of the '
        'training in positional_encoding, which are not in the weights.',
    ]


def test_a_mismatch_lists_official_keys():
    official = official_weights('Swin')
    del official['transformer.decoder.ref_point_head.layers.1.bias']
    del official['backbone.layers.2.blocks.5.attn.qkv.bias']
    official['transformer.alpha'] = torch.ones(3)
    official['label_enc.weight'] = torch.ones(81, 256)

    with pytest.raises(ValueError, match='does not fit dino, 4 levels, Swin') as info:
        convert_official(official)

    assert (
        'missing keys: backbone.layers.2.blocks.5.attn.qkv.bias, '
        'transformer.decoder.ref_point_head.layers.1.bias; unexpected keys: '
        'transformer.alpha; size mismatch: label_enc.weight (81, 256) instead of '
        '(80, 256).'
    ) in str(info.value)


def test_keys_outside_of_the_model_are_refused():
    official = {f'model.{k}': x for k, x in official_weights('Swin').items()}
    official['teacher.weight'] = torch.ones(1)

    with pytest.raises(
        ValueError, match=r'keys without the prefix .*: teacher\.weight'
    ):
        convert_official(official)
