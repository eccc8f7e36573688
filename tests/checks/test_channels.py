"""Channels of necks and heads against those of the backbone."""

import pytest
from mmengine.config import Config

from mmsparse.apis import read_config
from mmsparse.checks.channels import check_channels
from mmsparse.errors import UsageError


def detector(in_channels, **settings):
    backbone = dict(type='mmsparse.DAT', arch='pp-small', **settings)
    neck = dict(type='FPN', in_channels=in_channels)
    return Config(dict(model=dict(backbone=backbone, neck=neck)))


def test_a_neck_with_other_channels_is_an_error_with_both_settings(tmp_path):
    cfg = detector([128, 256, 512], out_indices=(1, 2, 3))

    with pytest.raises(
        ValueError,
        match=r'model\.neck\.in_channels=\[128, 256, 512\].*DAT.*pp-small.*'
        r'out_indices=\(1, 2, 3\) returns \[192, 384, 768\]',
    ):
        check_channels(cfg)

    path = tmp_path / 'mine.py'
    path.write_text(f"default_scope = 'mmdet'\n{cfg.pretty_text}")
    with pytest.raises(
        UsageError, match=r'set in_channels=\[192, 384, 768\] or change out_indices'
    ):
        read_config(str(path))
    read_config(str(path), {'model.neck.in_channels': [192, 384, 768]})


@pytest.mark.parametrize(
    'settings',
    [
        dict(out_indices=(0, 1, 2, 3)),
        dict(out_indices=(2, 3)),
        dict(),
        dict(out_indices=(1, 2, 3), arch='pp-base'),
        dict(out_indices=(1, 2, 3), arch=dict(base='pp-base', mlp_ratios=2.0)),
        dict(
            out_indices=(1, 2, 3),
            arch=dict(base='pp-small', embed_dims=(8, 16, 32, 64)),
        ),
    ],
    ids=['one more', 'one less', 'default', 'other arch', 'changed arch', 'own arch'],
)
def test_any_other_feature_maps_are_an_error(settings):
    cfg = detector([192, 384, 768])
    cfg.model.backbone.update(settings)

    with pytest.raises(UsageError, match=r'in_channels=\[192, 384, 768\]'):
        check_channels(cfg)


@pytest.mark.parametrize(
    ('part', 'fitting', 'wrong'),
    [
        (
            'neck',
            [dict(type='FPN', in_channels=[32, 64, 128, 256]), dict(type='DyHead')],
            [dict(type='FPN', in_channels=[32])],
        ),
        (
            'neck',
            dict(type='YOLOV3Neck', in_channels=[256, 128, 64, 32]),
            dict(type='YOLOV3Neck', in_channels=[32, 64, 128, 256]),
        ),
        (
            'neck',
            dict(type='CTResNetNeck', in_channels=256),
            dict(type='CTResNetNeck', in_channels=512),
        ),
        (
            'auxiliary_head',
            [dict(in_channels=128, in_index=2)],
            [dict(in_channels=128, in_index=1)],
        ),
        ('panoptic_head', dict(in_channels=[32, 64, 128, 256]), dict(in_channels=[9])),
        (
            'decode_head',
            dict(in_channels=[64, 256], in_index=[1, 3]),
            dict(in_channels=[64, 256], in_index=[0, 3]),
        ),
        ('decode_head', dict(in_channels=128, in_index=2), dict(in_channels=128)),
        ('head', dict(in_channels=256), dict(in_channels=512)),
    ],
    ids=[
        *('list', 'deep to shallow', 'last map', 'auxiliary', 'panoptic', 'some maps'),
        *('one map', 'classifier'),
    ],
)
def test_heads_and_lists_of_necks_are_checked(part, fitting, wrong):
    backbone = dict(type='mmsparse.BiFormer', arch='nano', out_indices=(0, 1, 2, 3))
    neck = dict(type='GlobalAveragePooling')
    cfg = Config(dict(model=dict(backbone=backbone, neck=neck)))

    check_channels(cfg.merge_from_dict({f'model.{part}': fitting}) or cfg)
    cfg.model[part] = wrong
    with pytest.raises(UsageError, match=rf'model\.{part}(\[0\])?\.in_channels'):
        check_channels(cfg)


@pytest.mark.parametrize(
    'model',
    [
        dict(backbone=dict(type='ResNet', depth=50), neck=dict(in_channels=[3])),
        dict(backbone=dict(type='mmsparse.Unknown'), neck=dict(in_channels=[3])),
        dict(
            backbone=dict(type='mmsparse.DAT', arch='huge'), neck=dict(in_channels=[3])
        ),
        dict(head=dict(in_channels=3)),
        dict(
            backbone=dict(type='mmsparse.DAT'), neck=dict(type='Mine', in_channels=[3])
        ),
        dict(
            backbone=dict(type='mmsparse.DAT'),
            neck=dict(type='Mine'),
            head=dict(in_channels=3),
        ),
    ],
    ids=[
        *('another library', 'unknown', 'unknown arch', 'none', 'unknown neck'),
        'unknown neck before a head',
    ],
)
def test_other_backbones_and_necks_are_not_checked(model):
    check_channels(Config(dict(model=model)))


def test_the_neck_of_a_panoptic_detr_takes_the_last_map():
    backbone = dict(type='mmsparse.BiFormer', arch='nano', out_indices=(0, 1, 2, 3))
    model = dict(
        type='mmsparse.PanopticDETR',
        backbone=backbone,
        neck=dict(type='ChannelMapper', in_channels=[256]),
    )
    check_channels(Config(dict(model=model)))

    model['neck']['in_channels'] = [32, 64, 128, 256]
    with pytest.raises(UsageError, match=r'set in_channels=\[256\]'):
        check_channels(Config(dict(model=model)))
