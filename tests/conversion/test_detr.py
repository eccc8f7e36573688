import copy
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from deformable_keys import CATEGORIES
from mmdet.models.backbones import ResNet
from mmengine.hub import get_config
from test_deformable_detr import official_weights as deformable_weights

from mmsparse.apis import build_model, read_config, register_host
from mmsparse.conversion import convert_official
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import recognize
from mmsparse.models import DC5ResNet

ROOT = Path(__file__).parents[2]
PANOPTIC = ROOT / 'configs/detr/panoptic-detr_r50_32xb2-500e_coco-panoptic.py'
STUFF = [
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144),
    *(145, 147, 148, 149, 151, 154, 155, 156, 159, 161, 166, 168, 171, 175, 176, 177),
    *(178, 180, 181, *range(184, 201)),
]
IDS = {'detr': 91, 'detr_panoptic': 250}
KEPT = {'detr': [*CATEGORIES, 91], 'detr_panoptic': [*CATEGORIES, *STUFF, 250]}
# Keys of mmdet and official keys; the first that fits counts.
NAMES = (
    (r'mask_head\.attention\.(.*)', r'bbox_attention.\1'),
    (r'mask_head\.network\.out_conv\.(.*)', r'mask_head.out_lay.\1'),
    (r'mask_head\.network\.convs\.(\d)\.(.*)', r'mask_head.lay{}.\2'),
    (r'mask_head\.network\.norms\.(\d)\.(.*)', r'mask_head.gn{}.\2'),
    (r'mask_head\.network\.adapters\.(\d)\.(.*)', r'mask_head.adapter{}.\2'),
    (r'backbone\.(.*)', r'detr.backbone.0.body.\1'),
    (r'neck\.convs\.0\.conv\.(.*)', r'detr.input_proj.\1'),
    (r'query_embedding\.weight', 'detr.query_embed.weight'),
    (r'bbox_head\.fc_cls\.(.*)', r'detr.class_embed.\1'),
    (r'bbox_head\.reg_ffn\.layers\.0\.0\.(.*)', r'detr.bbox_embed.layers.0.\1'),
    (r'bbox_head\.reg_ffn\.layers\.1\.(.*)', r'detr.bbox_embed.layers.1.\1'),
    (r'bbox_head\.fc_reg\.(.*)', r'detr.bbox_embed.layers.2.\1'),
    (r'decoder\.post_norm\.(.*)', r'detr.transformer.decoder.norm.\1'),
    (r'(.*)\.norms\.0\.(.*)', r'detr.transformer.\1.norm1.\2'),
    (r'(.*)\.norms\.1\.(.*)', r'detr.transformer.\1.norm2.\2'),
    (r'(.*)\.norms\.2\.(.*)', r'detr.transformer.\1.norm3.\2'),
    (r'(.*)\.ffn\.layers\.0\.0\.(.*)', r'detr.transformer.\1.linear1.\2'),
    (r'(.*)\.ffn\.layers\.1\.(.*)', r'detr.transformer.\1.linear2.\2'),
    (r'(.*self_attn)\.attn\.(.*)', r'detr.transformer.\1.\2'),
    (r'(.*)cross_attn\.attn\.(.*)', r'detr.transformer.\1multihead_attn.\2'),
)


def official_key(family, key):
    for pattern, replacement in NAMES:
        if found := re.fullmatch(pattern, key):
            name = found.expand(replacement)
            if '{}' in name:  # official numbers start at 1
                name = name.format(int(found[1]) + 1)
            return name if family == 'detr_panoptic' else name.removeprefix('detr.')
    raise AssertionError(key)


@cache
def built(family):
    """The model on the meta device."""
    register_host('mmdet')
    if family == 'detr':
        cfg = get_config('mmdet::detr/detr_r50_8xb2-150e_coco.py')
        cfg.default_scope = 'mmdet'
    else:
        cfg = read_config(str(PANOPTIC))
    with torch.device('meta'):
        return build_model(cfg)


def official_weights(family):
    """Numbered weights with official keys, and a row for every category id."""
    official = {}
    for number, (key, tensor) in enumerate(built(family).state_dict().items()):
        if key.endswith('num_batches_tracked'):
            continue  # missing for frozen norms
        name, shape = official_key(family, key), tensor.shape
        official[name] = torch.tensor(float(number)).expand(shape)
        if 'class_embed' in name:
            rows = IDS[family] + 1
            numbers = torch.arange(float(rows))
            official[name] = numbers.view(-1, *[1] * len(shape[1:])).expand(
                -1, *shape[1:]
            )
    return official


@pytest.mark.parametrize(
    ('family', 'entries', 'arch'),
    [
        ('detr', 458, 'dense attention, ResNet-50'),
        ('detr_panoptic', 490, 'dense attention and mask head, ResNet-50'),
    ],
)
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_official_weights_become_those_of_mmdet(family, entries, arch, prefix):
    official = official_weights(family)
    assert len(official) == entries

    found = convert({'model': {prefix + k: x for k, x in official.items()}, 'epoch': 1})

    assert (found.family, found.arch) == (family, arch)
    assert "backbone=dict(type='mmsparse.DC5ResNet')" in found.note
    assert ('mmsparse.PanopticDETR' in found.note) == (family == 'detr_panoptic')
    copy.deepcopy(built(family)).load_state_dict(
        found.state_dict, strict=True, assign=True
    )
    for key, tensor in found.state_dict.items():
        if '.fc_cls.' not in key:
            assert torch.equal(tensor, official[official_key(family, key)]), key


@pytest.mark.parametrize('family', IDS)
def test_rows_of_categories_become_rows_of_classes(family):
    official = official_weights(family)

    for ids, expected in (
        (None, KEPT[family]),
        ('all', [*range(IDS[family] + 1)]),
        ([3, 1], [3, 1, IDS[family]]),
    ):
        converted = convert_official(official, class_ids=ids)
        assert converted['bbox_head.fc_cls.bias'].tolist() == expected
        assert converted['bbox_head.fc_cls.weight'][:, 0].tolist() == expected


def test_the_rows_of_other_data_are_kept():
    official = official_weights('detr')
    official |= {k: x[:21] for k, x in official.items() if k.startswith('class_embed')}

    converted = convert_official(official)

    assert converted['bbox_head.fc_cls.bias'].tolist() == [*range(21)]


@pytest.mark.parametrize('ids', [[1, 91], [-1], 'some'], ids=str)
def test_other_ids_are_refused(ids):
    with pytest.raises(ValueError, match=r"'all' or ids from 0 to 90, .*; got"):
        convert_official(official_weights('detr'), class_ids=ids)


def test_ids_are_refused_for_models_without_them():
    with pytest.raises(ValueError, match='class_ids must be None for a deformable_d'):
        convert_official(deformable_weights('plain'), class_ids='all')


@pytest.mark.parametrize('family', IDS)
def test_a_mismatch_lists_official_keys(family):
    official = official_weights(family)
    names = [official_key(family, f'decoder.layers.{i}.norms.2.bias') for i in (1, 4)]
    del official[names[0]]
    official[names[1]] = torch.ones(3)
    official['query_pos'] = torch.ones(2)

    with pytest.raises(ValueError, match=f'does not fit {family}, dense') as info:
        convert_official(official)

    expected = (
        f'missing keys: {names[0]}; unexpected keys: query_pos; size mismatch: '
        f'{names[1]} (3,) instead of (256,).'
    )
    assert expected in str(info.value)


def test_the_detector_is_recognized():
    for family in IDS:
        assert recognize(official_weights(family)).convertible


def test_the_first_block_of_dc5_is_not_dilated():
    """As in torchvision; with the same weights mmdet's is another function."""
    settings = dict(depth=50, base_channels=2, out_indices=(2, 3))
    torch.manual_seed(0)
    dc5 = DC5ResNet(**settings)
    host = ResNet(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **settings)
    host.load_state_dict(dc5.state_dict())
    x = torch.randn(1, 3, 90, 120)

    with torch.no_grad():
        (before, found), (_, other) = dc5(x), host(x)

    dilations = [block.conv2.dilation[0] for block in dc5.layer4]
    assert dilations == [1, 2, 2]
    assert found.shape[2:] == before.shape[2:] == other.shape[2:]
    assert not torch.allclose(found, other, rtol=1e-2)
    with pytest.raises(ValueError, match=r'depth must be 50, 101 or 152; got 18\.'):
        DC5ResNet(depth=18)
