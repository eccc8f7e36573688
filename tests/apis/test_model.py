import argparse
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config

from mmsparse.apis import model as hosts
from mmsparse.apis.model import (
    UsageError,
    augment_pictures,
    build_model,
    check_channels,
    check_data,
    check_pretrained,
    config_arguments,
    load_config,
    read_config,
)
from mmsparse.doctor import installed_versions

CONFIGS = Path(__file__).parents[2] / 'configs'


def parse(*arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    config_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


@pytest.fixture
def config(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("default_scope = 'mmpretrain'\nmodel = dict(depth=3)\n")
    return path


def test_options_change_settings(config):
    cfg = load_config(parse(config, '--cfg-options', 'model.depth=4', 'model.x=[1,2]'))

    assert cfg.model.depth == 4
    assert cfg.model.x == [1, 2]


@pytest.mark.parametrize(
    ('option', 'message'),
    [
        ('model.depth', "--cfg-options: must be KEY=VALUE; got 'model.depth'"),
        ('=4', "--cfg-options: must be KEY=VALUE; got '=4'"),
        ('model.x=[[1,2]', '--cfg-options: Imbalanced brackets'),
    ],
)
def test_an_option_without_a_value_is_told_with_the_usage(
    config, option, message, capsys
):
    with pytest.raises(SystemExit):
        parse(config, '--cfg-options', 'model.depth=4', option)

    assert message in capsys.readouterr().err


@pytest.mark.parametrize('option', ['model.depth.x=1', 'model.list.5.x=1'])
def test_an_option_that_the_config_has_no_place_for_is_told(config, option):
    config.write_text(config.read_text() + 'model.update(list=[dict()])\n')

    with pytest.raises(UsageError, match=rf'settings that {config} has no place for'):
        load_config(parse(config, '--cfg-options', option))


def test_the_work_directory_is_named_after_the_config(config):
    assert load_config(parse(config)).work_dir == 'work_dirs/mine'
    assert load_config(parse(config, '--work-dir', 'there')).work_dir == 'there'


def test_a_missing_config_is_told_by_its_path():
    with pytest.raises(UsageError, match=r'no such file: nothing\.py'):
        load_config(parse('nothing.py'))


def test_a_missing_host_is_told_with_the_page_on_installing(config, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)

    with pytest.raises(UsageError, match=r'mmpretrain, .*docs/installation\.md'):
        load_config(parse(config))


def test_a_base_of_a_missing_host_is_told_with_the_page(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmtrack::_base_/default_runtime.py'\n")

    with pytest.raises(UsageError, match=r'mmtrack .*docs/installation\.md'):
        load_config(parse(path))


def test_missing_digits_are_told_with_the_command_that_makes_them(tmp_path):
    dataset = dict(type='Any', data_root=str(tmp_path / 'digits' / 'detection'))
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))

    with pytest.raises(UsageError, match=hosts.DIGITS_COMMAND):
        check_data(cfg)


def test_missing_data_below_a_wrapper_is_told_by_its_path():
    inner = dict(type='Any', data_root='data/nowhere')
    wrapper = dict(type='RepeatDataset', dataset=inner)
    cfg = Config(dict(val_dataloader=dict(dataset=wrapper)))

    with pytest.raises(UsageError, match='val_dataloader: no data at data/nowhere'):
        check_data(cfg)


def test_augmentation_takes_the_pipeline_and_wraps_the_model():
    dataset = dict(type='Any', pipeline=[dict(type='One')])
    cfg = Config(
        dict(
            model=dict(type='Segmentor'),
            tta_model=dict(type='Merge'),
            flips=[dict(type='Two')],
            test_dataloader=dict(dataset=dataset),
        )
    )

    augment_pictures(cfg, 'flips')

    assert cfg.test_dataloader.dataset.pipeline == [dict(type='Two')]
    assert cfg.model == dict(type='Merge', module=dict(type='Segmentor'))
    with pytest.raises(UsageError, match='--tta needs rotations in the config'):
        augment_pictures(cfg, 'rotations')


def detector(in_channels, **settings):
    backbone = dict(type='mmsparse.DAT', arch='pp-small', **settings)
    neck = dict(type='FPN', in_channels=in_channels)
    return Config(dict(model=dict(backbone=backbone, neck=neck)))


def test_a_neck_for_other_maps_is_told_with_both_settings(config):
    cfg = detector([128, 256, 512], out_indices=(1, 2, 3))

    with pytest.raises(
        ValueError,
        match=r'model\.neck\.in_channels=\[128, 256, 512\].*mmsparse\.DAT.*pp-small.*'
        r'out_indices=\(1, 2, 3\) returns \[192, 384, 768\]',
    ):
        check_channels(cfg)

    config.write_text(cfg.pretty_text)
    with pytest.raises(UsageError, match='change in_channels or out_indices'):
        load_config(parse(config))
    load_config(parse(config, '--cfg-options', 'model.neck.in_channels=[192,384,768]'))


@pytest.mark.parametrize(
    'settings',
    [
        dict(out_indices=(0, 1, 2, 3)),
        dict(out_indices=(2, 3)),
        dict(),
        dict(out_indices=(1, 2, 3), arch='pp-base'),
        dict(out_indices=(1, 2, 3), arch=dict(base='pp-base', position_biases='none')),
        dict(
            out_indices=(1, 2, 3), arch=dict(base='pp-base', embed_dims=(8, 16, 32, 64))
        ),
    ],
    ids=['one more', 'one less', 'default', 'other arch', 'changed arch', 'own arch'],
)
def test_any_other_maps_are_told(settings):
    cfg = detector([192, 384, 768])
    cfg.model.backbone.update(settings)

    with pytest.raises(UsageError, match=r'in_channels=\[192, 384, 768\]'):
        check_channels(cfg)


@pytest.mark.parametrize(
    ('part', 'fitting', 'wrong'),
    [
        ('neck', [dict(in_channels=[32, 64, 128, 256])], [dict(in_channels=[32])]),
        ('panoptic_head', dict(in_channels=[32, 64, 128, 256]), dict(in_channels=[9])),
        (
            'decode_head',
            dict(in_channels=[64, 256], in_index=[1, 3]),
            dict(in_channels=[64, 256], in_index=[0, 3]),
        ),
        ('decode_head', dict(in_channels=128, in_index=2), dict(in_channels=128)),
        ('head', dict(in_channels=256), dict(in_channels=512)),
    ],
    ids=['list', 'panoptic', 'some maps', 'one map', 'classifier'],
)
def test_heads_and_lists_are_looked_at_too(part, fitting, wrong):
    backbone = dict(type='mmsparse.BiFormer', arch='nano', out_indices=(0, 1, 2, 3))
    cfg = Config(dict(model=dict(backbone=backbone, neck=dict(type='Pooling'))))

    check_channels(cfg.merge_from_dict({f'model.{part}': fitting}) or cfg)
    cfg.model[part] = wrong
    with pytest.raises(UsageError, match=rf'model\.{part}\.in_channels'):
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
    ],
    ids=['of a host', 'unknown', 'unknown arch', 'none'],
)
def test_other_backbones_are_left_to_the_host(model):
    check_channels(Config(dict(model=model)))


def test_a_missing_file_of_pretrained_weights_is_told_with_the_command(tmp_path):
    path = tmp_path / 'small_in1k.pth'
    start = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    cfg = Config(dict(model=dict(backbone=dict(init_cfg=[start]))))

    with pytest.raises(
        UsageError, match=rf'no such file: {path}; .*{hosts.CONVERT_COMMAND} .* {path}'
    ):
        check_pretrained(cfg)

    path.touch()
    check_pretrained(cfg)
    cfg.model.backbone.init_cfg[0].checkpoint = 'torchvision://resnet50'
    check_pretrained(cfg)


@pytest.mark.xfail(
    'onedl-mmengine' in installed_versions(),
    reason='onedl-mmengine looks for mmsegmentation, which has another name there',
    strict=True,
)
def test_a_base_of_mmseg_is_found():
    name = 'biformer/fpn_biformer-nano_1xb8-1600i_digits.py'
    assert read_config(str(CONFIGS / name)).model.type == 'EncoderDecoder'


def test_a_fork_that_does_not_find_its_mmsegmentation_is_told(monkeypatch, config):
    def fail(path):
        raise ModuleNotFoundError('mmsegmentation is not installed')

    monkeypatch.setattr(hosts.Config, 'fromfile', fail)
    with pytest.raises(UsageError, match="based on mmseg::, which OneDL's mmengine"):
        read_config(str(config))


def test_a_classifier_normalizes_as_its_config_says():
    cfg = read_config(str(CONFIGS / 'biformer' / 'biformer-nano_1xb32-9e_digits.py'))

    model = build_model(cfg)

    assert model.data_preprocessor.mean.flatten().tolist() == [127.5] * 3
    assert 'data_preprocessor' not in cfg.model


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'backbone.arch': 'huge'}, r"BiFormer: arch must be one of .*; got 'huge'"),
        ({'backbone.depth': 1}, r"TypeError: .*unexpected .* 'depth' \(.*, line \d+\)"),
        (
            {'backbone.type': 'BiFormer'},
            r'KeyError: .BiFormer is not in the mmpretrain',
        ),
        (
            {'head.num_classes': '2'},
            r'LinearClsHead: TypeError: .* \(.*linear_head\.py',
        ),
        ({'head': 3}, 'TypeError: .*int'),
        ({'backbone': 3}, 'TypeError: .*int'),
    ],
    ids=['value', 'name', 'type', 'kind', 'no dict', 'no backbone'],
)
def test_settings_that_a_model_does_not_take_are_told(change, message):
    path = CONFIGS / 'biformer' / 'biformer-nano_1xb32-9e_digits.py'
    options = {f'model.{key}': value for key, value in change.items()}

    with pytest.raises(UsageError, match=rf'^config: .*{message}'):
        build_model(read_config(str(path), options))


def test_a_fault_that_is_no_setting_keeps_its_traceback(monkeypatch):
    cfg = read_config(str(CONFIGS / 'biformer' / 'biformer-nano_1xb32-9e_digits.py'))

    def fail(*args, **kwargs):
        raise RuntimeError('CUDA error')

    monkeypatch.setattr('mmpretrain.models.LinearClsHead.__init__', fail)
    with pytest.raises(RuntimeError, match='CUDA error'):
        build_model(cfg)
