import argparse
import importlib.util

import pytest
from mmengine.config import Config

from mmsparse import hosts
from mmsparse.hosts import UsageError, check_data, config_arguments, load_config


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


def test_the_work_directory_is_named_after_the_config(config):
    assert load_config(parse(config)).work_dir == 'work_dirs/mine'
    assert load_config(parse(config, '--work-dir', 'there')).work_dir == 'there'


def test_a_missing_config_is_told_by_its_path():
    with pytest.raises(UsageError, match=r'no such file: nothing\.py'):
        load_config(parse('nothing.py'))


def test_a_missing_host_is_told_with_the_extra_to_install(config, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)

    with pytest.raises(UsageError, match=r"mmpretrain.*pip install 'mmsparse\[openmm"):
        load_config(parse(config))


def test_a_base_of_a_missing_host_is_told_with_the_extra(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmtrack::_base_/default_runtime.py'\n")

    with pytest.raises(UsageError, match=r"mmtrack.*pip install 'mmsparse\[openmmlab"):
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
