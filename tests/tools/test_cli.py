"""Errors, hints and checks that all commands share."""

import ast
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import _cli

import pytest

from mmsparse.errors import MissingFileError, OfficialWeightsError, UsageError

TOOLS = Path(_cli.__file__).parent
# The others create environments, and need no package.
COMMANDS = sorted(
    {x.name for x in TOOLS.glob('[a-z]*.py')} - {'install.py', 'matrix.py'}
)


def run(error, *expected):
    def main():
        raise error

    with pytest.raises(SystemExit) as info:
        _cli.run(main, *expected)
    return info.value.code


@pytest.mark.parametrize('status', [None, 0, 1, True])
def test_the_exit_status_is_that_of_the_command(status):
    with pytest.raises(SystemExit) as info:
        _cli.run(lambda: status)

    assert info.value.code == status


def test_an_expected_error_is_one_line():
    assert run(UsageError('wrong')) == 'error: wrong'
    assert run(OSError('full'), OSError) == 'error: full'
    assert run(KeyboardInterrupt()) == 'interrupted'


def test_a_closed_pipe_ends_a_command_without_a_message():
    program = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import _cli
_cli.run(lambda: [print(i) for i in range(100_000)] and None, OSError)
"""
    command = [sys.executable, '-c', program]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()

        assert process.stderr.read() == b''
    assert process.returncode == 128 + 13


def test_any_other_error_keeps_its_traceback():
    def main():
        raise RuntimeError('CUDA error')

    with pytest.raises(RuntimeError):
        _cli.run(main, OSError)


def test_official_weights_have_a_hint_at_the_command_that_converts_them():
    error = OfficialWeightsError('an official checkpoint', 'official.pth')

    assert run(error) == (
        'error: an official checkpoint: python tools/convert_checkpoint.py '
        'official.pth CONVERTED.pth'
    )
    assert run(OfficialWeightsError('official', 'https://x/a.pth')) == 'error: official'


@pytest.mark.parametrize(
    ('path', 'hint'),
    [
        (
            'data/digits/detection',
            '; create it with: python tools/prepare_digits.py',
        ),
        (
            'weights/small.pth',
            '; convert the official weights: python tools/convert_checkpoint.py '
            'DOWNLOADED weights/small.pth',
        ),
        (
            'data/bccd/annotations',
            '; prepare it with: python tools/prepare_data.py bccd DOWNLOADED',
        ),
        (
            'data/coco128/annotations',
            '; prepare it with: python tools/prepare_data.py coco128 DOWNLOADED',
        ),
        ('data/coco', ''),
    ],
)
def test_a_missing_file_has_a_hint_at_the_command_that_makes_it(path, hint):
    assert run(MissingFileError('missing', path)) == f'error: missing{hint}'


def test_warnings_of_dependencies_are_dropped_and_others_are_not(caplog):
    with warnings.catch_warnings(record=True) as caught:
        for text in _cli.WARNINGS:
            warnings.filterwarnings('ignore', text)
        warnings.warn('pkg_resources is deprecated as an API. See', stacklevel=1)
        warnings.warn('unexpected key in source state_dict', stacklevel=1)
    logger = logging.getLogger('dependencies')
    _cli.filter_log(logger)
    logger.warning('"FileClient" will be deprecated in %s', 'future')
    logger.warning('The loss is high')

    assert [str(x.message) for x in caught] == ['unexpected key in source state_dict']
    assert caplog.messages == ['The loss is high']


def test_a_missing_file_is_named_before_anything_is_built(tmp_path):
    (tmp_path / 'a.jpg').touch()
    _cli.check_files(str(tmp_path / 'a.jpg'))
    for missing in ('b.jpg', ''):
        with pytest.raises(UsageError, match=f'no such file: {tmp_path / missing}'):
            _cli.check_files(str(tmp_path / 'a.jpg'), str(tmp_path / missing))


@pytest.mark.parametrize('other', ['b/cat.jpg', 'a/cat.png', 'a/cat.jpg'])
def test_two_images_with_one_name_are_an_error(other):
    _cli.check_unique_names(['a/cat.jpg', 'a/dog.jpg'])
    with pytest.raises(UsageError, match=f'a/cat.jpg and {other} have the same name'):
        _cli.check_unique_names(['a/cat.jpg', 'a/dog.jpg', other])


@pytest.mark.parametrize('name', COMMANDS)
def test_outside_the_environment_a_command_ends_with_the_way_into_it(name, tmp_path):
    command = [sys.executable, '-S', TOOLS / name, '--help']  # without packages
    env = {key: x for key, x in os.environ.items() if key != 'PYTHONPATH'}

    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=env
    )

    assert done.returncode == 1
    assert done.stdout == ''
    assert done.stderr == (
        f'error: {sys.executable} lacks mmsparse; activate the environment (source '
        f'{TOOLS.parent}/.venv/bin/activate), or create it first (make install)\n'
    )


@pytest.mark.parametrize(
    ('name', 'option'), [('install.py', '--stack'), ('matrix.py', '--list')]
)
def test_the_installation_needs_no_package(name, option, tmp_path):
    command = [sys.executable, '-S', TOOLS / name, '--help']

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_imports_cli_before_packages(name):
    tree = ast.parse((TOOLS / name).read_text())
    imports = [x for x in tree.body if isinstance(x, (ast.Import, ast.ImportFrom))]
    modules = [getattr(x, 'module', None) or x.names[0].name for x in imports]
    first = modules.index('_cli')

    assert {x.partition('.')[0] for x in modules[:first]} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        (ModuleNotFoundError('', name='no_such.module'), 'lacks no_such'),
        (ModuleNotFoundError('', name='torch.no_such'), None),
        (ImportError('cannot import name', name='torch'), None),
        (RuntimeError('CUDA error'), None),
    ],
    ids=['missing', 'part of a package', 'name', 'other'],
)
def test_a_missing_package_is_one_line_and_another_error_a_traceback(
    error, line, capsys
):
    _cli._report_missing(type(error), error, None)

    printed = capsys.readouterr().err
    if line:
        assert printed.count('\n') == 1
        assert printed.startswith(f'error: {sys.executable} {line}')
    else:
        assert printed.startswith(f'{type(error).__name__}')


def test_an_incomplete_environment_is_completed_and_a_wheel_gets_its_extras(
    monkeypatch,
):
    monkeypatch.setattr(sys, 'prefix', str(_cli.ROOT / '.venv-onedl'))
    assert _cli.use_environment('lacks x').endswith('complete it: make install')

    monkeypatch.setattr(_cli, 'INSTALLED', True)
    assert _cli.use_environment('lacks x').endswith(
        "; run pip install 'mmsparse[openmmlab,digits,export]'"
    )


def test_nothing_is_printed_while_the_libraries_are_imported(tmp_path):
    hosts = [f'{host}.apis' for host in ('mmdet', 'mmseg', 'mmpretrain')]
    script = f"""
import sys
sys.path.insert(0, {str(TOOLS)!r})
import _cli
import onnx, torchvision, sklearn.datasets, matplotlib.pyplot, {', '.join(hosts)}
from mmsparse.apis import register_host
for host in ('mmdet', 'mmseg', 'mmpretrain'):
    register_host(host)
"""
    env = {key: x for key, x in os.environ.items() if key != 'PYTHONWARNINGS'}

    done = subprocess.run(
        [sys.executable, '-c', script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=env,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, '', '')


def test_output_in_a_locale_without_a_character_does_not_fail():
    code = f'import sys; sys.path.insert(0, {str(TOOLS)!r}); import _cli; print("猫")'
    env = os.environ | dict(PYTHONIOENCODING='ascii')

    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=env
    )

    assert (done.returncode, done.stdout) == (0, '\\u732b\n')
