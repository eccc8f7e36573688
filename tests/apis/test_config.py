"""Reading a config and its command-line arguments; every mistake is one line."""

import argparse
import importlib.util
from pathlib import Path

import pytest
from mmengine.config import Config
from mmpretrain.models import ImageClassifier

from mmsparse.apis import config_arguments, find_host, load_config, read_config
from mmsparse.apis.config import read_file
from mmsparse.errors import UsageError
from mmsparse.models.detectors import FocusDETR

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
        ('x=[dict(a=1,b=2),dict(b=2)]', '--cfg-options: values are numbers'),
    ],
)
def test_a_malformed_option_is_an_error_of_argparse(config, option, message, capsys):
    with pytest.raises(SystemExit):
        parse(config, '--cfg-options', 'model.depth=4', option)

    assert message in capsys.readouterr().err


@pytest.mark.parametrize('option', ['model.depth.x=1', 'model.list.5.x=1'])
def test_an_option_below_a_number_or_outside_a_list_is_an_error(config, option):
    config.write_text(config.read_text() + 'model.update(list=[dict()])\n')

    with pytest.raises(UsageError, match=rf'options do not fit .* of {config}: '):
        load_config(parse(config, '--cfg-options', option))


def test_the_work_directory_is_named_after_the_config(config):
    assert load_config(parse(config)).work_dir == 'work_dirs/mine'
    assert load_config(parse(config, '--work-dir', 'there')).work_dir == 'there'


def test_a_missing_config_is_named():
    with pytest.raises(UsageError, match=r'no such file: nothing\.py'):
        load_config(parse('nothing.py'))


def test_a_missing_library_is_named_with_the_page_on_installation(config, monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)

    with pytest.raises(UsageError, match=r'mmpretrain, .*docs/installation\.md'):
        load_config(parse(config))


def test_a_base_of_a_missing_library_is_named_with_the_page_on_installation(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text("_base_ = 'mmtrack::_base_/default_runtime.py'\n")

    with pytest.raises(UsageError, match=r'mmtrack .*docs/installation\.md'):
        load_config(parse(path))


def test_a_base_of_mmseg_is_found():
    name = 'biformer/fpn_biformer-nano_1xb8-1600i_digits.py'
    assert read_config(str(CONFIGS / name)).model.type == 'EncoderDecoder'


BASES = (
    r"; a _base_ is a path .*'mmdet::_base_/default_runtime\.py'; give configs of mms"
)
BROKEN = 'x = 1\ny = (\n'
# Content of mine.py, in the folder of broken.py, and the error.
FAULTS = {
    'syntax': (BROKEN, r"mine\.py: SyntaxError: '\(' was never closed \(line 2\)"),
    'syntax of a base': (
        "_base_ = './broken.py'",
        r'\./broken\.py: SyntaxError: .* \(line 2\)',
    ),
    'name': ('x = 1\ny = z\n', r"mine\.py: NameError: name 'z' .* \(line 2\)"),
    'no base': ("_base_ = './no.py'", rf'mine\.py: no such _base_: .*\./no\.py{BASES}'),
    'no base of a library': (
        "_base_ = 'mmengine::no/no.py'",
        r'mine\.py: no such _base_: .*no\.py; a _base_ is',
    ),
    'no folder of a library': (
        "_base_ = 'mmdet::no.py'",
        rf'mine\.py: no such _base_: mmdet::no\.py{BASES}',
    ),
    'mmsparse as a library': (
        "_base_ = 'mmsparse::dat/dat-tiny.py'",
        rf'mine\.py: no such _base_: mmsparse::dat/dat-tiny\.py{BASES}',
    ),
    'a base that is no config': (
        "_base_ = './README.md'",
        r'README\.md must end in \.py, \.yml, \.yaml, \.json',
    ),
    'two bases': (
        "_base_ = ['./a.yml', './b.yml']",
        r"mine\.py: KeyError: .*Duplicate keys: {'x'}.*; inherit from one of these",
    ),
    'import': (
        "custom_imports = dict(imports=['no_module'])",
        r"mine\.py: No module named 'no_module'; add the folders of custom_imports",
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_the_faulty_file_is_named_in_one_line(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / 'broken.py').write_text(BROKEN)
    for name in 'ab':
        (tmp_path / f'{name}.yml').write_text('x: 1')
    (tmp_path / 'README.md').write_text('Mine.\n')
    (tmp_path / 'mine.py').write_text(content)

    with pytest.raises(UsageError, match=f'^config: .*{message}') as info:
        read_file(str(tmp_path / 'mine.py'))

    assert '\n' not in str(info.value)


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('README.md', 'Mine.\n', r'README\.md must end in \.py'),
        ('mine.json', '{"x": ', r'mine\.json: Expecting value: line 1'),
        ('mine.yml', 'x: y: z', r'mine\.yml: yaml\.\S+: mapping values are not'),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)

    with pytest.raises(UsageError, match=f'^config: {tmp_path}/{message}'):
        read_file(str(tmp_path / name))


@pytest.mark.parametrize(
    ('settings', 'host'),
    [
        (dict(default_scope='mmseg', model=dict(type='mmdet.ATSS')), 'mmseg'),
        (dict(model=dict(type='mmdet.ATSS')), 'mmdet'),
        (dict(model=dict(type='mmseg.models.segmentors.EncoderDecoder')), 'mmseg'),
        (dict(model=dict(type='mmsparse.FocusDETR')), 'mmdet'),
        (dict(default_scope=None, model=dict(type=ImageClassifier)), 'mmpretrain'),
        (dict(model=dict(type=type('Mine', (FocusDETR,), {}))), 'mmdet'),
        (dict(default_scope='mmaction', model=dict(type='Recognizer2D')), None),
        (dict(model=dict(type='mmsparse.BiFormer')), None),
        (dict(model=dict(type='ATSS')), None),
        (dict(model=None), None),
        (dict(), None),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value),
)
def test_the_library_of_a_config_is_that_of_its_model(settings, host):
    assert find_host(Config(settings)) == host


def test_a_pure_python_config_gets_a_default_scope(config):
    config.write_text('from mmdet.models import ATSS\nmodel = dict(type=ATSS)\n')

    assert read_config(str(config)).default_scope == 'mmdet'


def test_a_class_that_does_not_exist_is_an_error_in_one_line(config):
    config.write_text('from mmdet.models import Retina\nmodel = dict(type=Retina)\n')

    with pytest.raises(
        UsageError, match=r'^config: .*Failed to import Retina from mmdet.models'
    ):
        read_config(str(config))
