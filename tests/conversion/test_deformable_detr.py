import copy
import re
from functools import cache

import pytest
import torch
from deformable_keys import CATEGORIES, official_key
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from mmdet.models.layers.transformer import DeformableDetrTransformerDecoderLayer
from mmengine.hub import get_config
from torch.nn import functional as F

from mmsparse.apis import build_model, register_host
from mmsparse.conversion import convert_official
from mmsparse.conversion.convert import convert

CONFIGS = {
    'plain': 'deformable-detr_r50_16xb2-50e_coco',
    'refine': 'deformable-detr-refine_r50_16xb2-50e_coco',
    'two-stage': 'deformable-detr-refine-twostage_r50_16xb2-50e_coco',
}


@cache
def built(variant):
    """mmdet's model with the official neck, on the meta device."""
    register_host('mmdet')
    cfg = get_config(f'mmdet::deformable_detr/{CONFIGS[variant]}.py')
    cfg.model.neck.bias = True
    cfg.default_scope = 'mmdet'
    with torch.device('meta'):
        return build_model(cfg)


def official_weights(variant):
    """Numbered weights with official keys, 91 rows for 80 classes."""
    official = {}
    for number, (key, tensor) in enumerate(built(variant).state_dict().items()):
        if key.endswith('num_batches_tracked'):
            continue  # missing for frozen norms
        name = official_key(key)
        shape = tensor.shape
        if name.startswith('class_embed.'):
            shape = (91, *shape[1:])
        official[name] = torch.tensor(float(number)).expand(shape)
        if name.startswith('class_embed.'):
            official[name] = torch.arange(91.0).expand(*shape[1:], 91).T
    aliases = {'plain': (), 'refine': ('bbox',), 'two-stage': ('bbox', 'class')}
    for part in aliases[variant]:
        for name in [name for name in official if name.startswith(f'{part}_embed.')]:
            official[f'transformer.decoder.{name}'] = official[name]
    return official


@pytest.mark.parametrize('variant', CONFIGS)
def test_official_weights_become_those_of_mmdet(variant):
    official = official_weights(variant)

    found = convert({'model': official, 'epoch': 49})

    assert (found.family, found.arch) == ('deformable_detr', f'{variant}, ResNet-50')
    assert 'neck=dict(bias=True)' in found.note
    built(variant).load_state_dict(found.state_dict, strict=True, assign=True)
    for key, tensor in found.state_dict.items():
        if '.cls_branches.' not in key:
            assert torch.equal(tensor, official[official_key(key)]), key


@pytest.mark.parametrize('variant', CONFIGS)
def test_rows_of_categories_become_rows_of_classes(variant):
    converted = convert_official(official_weights(variant))

    for layer in range(6):
        for part in ('weight', 'bias'):
            rows = converted[f'bbox_head.cls_branches.{layer}.{part}']
            rows = rows[:, 0] if part == 'weight' else rows
            assert rows.tolist() == CATEGORIES


def test_the_head_for_proposals_keeps_its_first_row():
    converted = convert_official(official_weights('two-stage'))

    # Both rank proposals by the first row of this head and ignore the others.
    assert converted['bbox_head.cls_branches.6.bias'].tolist() == [0, *CATEGORIES[1:]]


def test_the_converted_model_picks_the_official_proposals():
    official = without_aliases(official_weights('two-stage'))
    official = {name: torch.randn(x.shape) / 16 for name, x in official.items()}
    model = copy.deepcopy(built('two-stage'))
    model.load_state_dict(convert_official(official), assign=True)
    sizes = torch.tensor([(16, 16), (8, 8), (4, 4), (2, 2)])
    memory = torch.randn(2, 340, 256)

    chosen, _ = model.eval().pre_decoder(memory, None, sizes)

    tokens, proposals = model.gen_encoder_output_proposals(memory, None, sizes)
    # In the official loss of the first stage, objects have class 0 of 91.
    scores = F.linear(
        tokens, official['class_embed.6.weight'], official['class_embed.6.bias']
    )[..., 0]
    x = tokens
    for i in range(3):
        names = [f'bbox_embed.6.layers.{i}.{part}' for part in ('weight', 'bias')]
        x = F.linear(x if i == 0 else x.relu(), *map(official.get, names))
    best = scores.topk(300).indices[..., None].expand(-1, -1, 4)
    expected = (x + proposals).gather(1, best).sigmoid()
    torch.testing.assert_close(chosen['reference_points'], expected)


def without_aliases(official):
    alias = re.compile(r'transformer\.decoder\.(class|bbox)_embed\.')
    return {name: x for name, x in official.items() if not alias.match(name)}


def test_another_number_of_classes_is_kept():
    official = official_weights('plain')
    official |= {k: x[:20] for k, x in official.items() if k.startswith('class_embed.')}

    converted = convert_official(official)

    assert converted['bbox_head.cls_branches.5.weight'].shape == (20, 256)


def test_one_level_has_no_strided_convolution():
    official = official_weights('plain')
    official = {k: x for k, x in official.items() if not k.startswith('input_proj.')}
    official['input_proj.0.0.weight'] = torch.ones(256, 2048, 1, 1)
    for name in ('input_proj.0.0.bias', 'input_proj.0.1.weight', 'input_proj.0.1.bias'):
        official[name] = torch.ones(256)
    official['transformer.level_embed'] = torch.ones(1, 256)
    for name in official:
        if 'sampling_offsets' in name or 'attention_weights' in name:
            official[name] = official[name][: len(official[name]) // 4]

    converted = convert_official(official)

    necks = [key for key in converted if key.startswith('neck.')]
    assert sorted(necks) == [
        f'neck.convs.0.{part}.{kind}'
        for part in ('conv', 'gn')
        for kind in ('bias', 'weight')
    ]


def test_the_decoder_layer_computes_the_same():
    official = official_weights('plain')
    prefix = 'transformer.decoder.layers.0.'
    own = {
        key.removeprefix(prefix): torch.randn(x.shape) / 8
        for key, x in official.items()
        if key.startswith(prefix)
    }
    changed = {prefix + key: x for key, x in own.items()}
    converted = convert_official({**official, **changed})
    layer = DeformableDetrTransformerDecoderLayer(
        cross_attn_cfg=dict(embed_dims=256),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=1024),
    ).eval()
    layer.load_state_dict(
        {
            k.removeprefix('decoder.layers.0.'): x
            for k, x in converted.items()
            if k.startswith('decoder.layers.0.')
        }
    )
    sizes = torch.tensor([(4, 5), (2, 3), (1, 2), (1, 1)])
    query, position = torch.randn(2, 1, 7, 256)
    memory, points = torch.randn(1, 29, 256), torch.rand(1, 7, 4, 2)

    actual = layer(
        query,
        query_pos=position,
        value=memory,
        reference_points=points,
        spatial_shapes=sizes,
        level_start_index=None,
    )

    expected = official_decoder_layer(own, query, position, memory, points, sizes)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def official_decoder_layer(weights, query, position, memory, points, sizes):
    """Self-attention, norm2; deformable attention, norm1; MLP, norm3."""

    def linear(x, name):
        return F.linear(x, weights[f'{name}.weight'], weights[f'{name}.bias'])

    def norm(x, name):
        return F.layer_norm(
            x, (256,), weights[f'{name}.weight'], weights[f'{name}.bias']
        )

    w, b = weights['self_attn.in_proj_weight'], weights['self_attn.in_proj_bias']
    inputs = query + position, query + position, query
    q, k, v = (
        F.linear(x, w_, b_).unflatten(-1, (8, 32)).transpose(1, 2)
        for x, w_, b_ in zip(inputs, w.chunk(3), b.chunk(3), strict=True)
    )
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    x = norm(query + linear(attended, 'self_attn.out_proj'), 'norm2')
    q, value = x + position, linear(memory, 'cross_attn.value_proj')
    offsets = linear(q, 'cross_attn.sampling_offsets').unflatten(-1, (8, 4, 4, 2))
    shares = linear(q, 'cross_attn.attention_weights').unflatten(-1, (8, 16))
    sampled = multi_scale_deformable_attn_pytorch(
        value.unflatten(-1, (8, 32)),
        sizes,
        points[:, :, None, :, None]
        + offsets / sizes.flip(-1)[None, None, None, :, None],
        shares.softmax(-1).unflatten(-1, (4, 4)),
    )
    x = norm(x + linear(sampled, 'cross_attn.output_proj'), 'norm1')
    return norm(x + linear(linear(x, 'linear1').relu(), 'linear2'), 'norm3')


def test_a_mismatch_lists_official_keys():
    official = official_weights('refine')
    del official['transformer.encoder.layers.3.norm1.weight']
    del official['input_proj.1.0.bias'], official['backbone.0.body.layer3.5.bn2.bias']
    official['input_proj.0.0.weight'] = torch.ones(256, 500, 1, 1)
    official['transformer.enc_mask.weight'] = torch.ones(1)

    with pytest.raises(ValueError, match='does not fit deformable_detr') as info:
        convert_official(official)

    assert (
        'refine, ResNet-50: missing keys: backbone.0.body.layer3.5.bn2.bias, '
        'input_proj.1.0.bias, transformer.encoder.layers.3.norm1.weight; unexpected '
        'keys: transformer.enc_mask.weight; size mismatch: input_proj.0.0.weight '
        '(256, 500, 1, 1) instead of (256, 512, 1, 1).'
    ) in str(info.value)


def test_an_alias_that_differs_is_a_warning():
    official = official_weights('refine')
    name = 'transformer.decoder.bbox_embed.2.layers.0.bias'
    official[name] = official[name] + 1

    with pytest.warns(UserWarning, match=rf'{name} should repeat bbox_embed\.2\.'):
        converted = convert_official(official)

    expected = official['bbox_embed.2.layers.0.bias']
    assert torch.equal(converted['bbox_head.reg_branches.2.0.bias'], expected)


def test_the_backbone_can_be_converted_alone():
    official = official_weights('plain')

    converted = convert_official(official, backbone_only=True)

    assert {k.partition('.')[0] for k in converted} == {'backbone'}
    assert len(converted) == sum(k.startswith('backbone.0.body.') for k in official)


def test_an_arch_is_refused():
    with pytest.raises(ValueError, match="arch must be None for a .*; got 'tiny'"):
        convert_official(official_weights('plain'), arch='tiny')


def test_another_backbone_is_an_error():
    official = official_weights('plain')
    official = {k.replace('0.body', '0.trunk'): x for k, x in official.items()}

    with pytest.raises(ValueError, match=r'unexpected keys: backbone\.0\.trunk\.conv1'):
        convert_official(official)

    official = {k.replace('0.trunk.', '0.body.cnn_'): x for k, x in official.items()}
    with pytest.raises(ValueError, match=r'ResNet or a Swin.*backbone\.0\.body\.cnn_'):
        convert_official(official)
