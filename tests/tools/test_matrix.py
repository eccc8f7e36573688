"""The decisions of tools/matrix.py, without an installation."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import matrix
import pytest
import yaml
from install.rows import ROWS
from install.stack import Stack
from matrix import RowError, count_outcomes, find_python, install, main

ROOT = Path(__file__).parents[2]
REPORT = """<testsuites><testsuite>
  <testcase name="a"/>
  <testcase name="b"><system-out>text</system-out></testcase>
  <testcase name="c"><failure message="x">x</failure></testcase>
  <testcase name="d"><error message="x">x</error></testcase>
  <testcase name="e"><skipped type="pytest.skip" message="no GPU"/></testcase>
  <testcase name="f"><skipped type="pytest.xfail" message="old torch"/></testcase>
</testsuite></testsuites>"""
PASSED = dict(Python='3.10', torch='2.1.0', passed='5', failed='0')


@pytest.fixture
def record(tmp_path, monkeypatch):
    """The record, with the results of two rows."""
    path = tmp_path / 'matrix.json'
    path.write_text(json.dumps({'title': 'x', 'figures': {'newest': {}, 'oldest': {}}}))
    monkeypatch.setattr(matrix, 'RECORD', path)
    monkeypatch.setattr(matrix.subprocess, 'run', Mock())
    monkeypatch.setattr(matrix.subprocess, 'check_output', lambda *_, **__: '1ab2c3d\n')
    return path


@pytest.fixture
def run(monkeypatch):
    """Run the command with these results of rows; return its exit status."""

    def run(results, *arguments):
        monkeypatch.setattr(sys, 'argv', ['matrix.py', *arguments])
        monkeypatch.setattr(matrix, 'run_row', Mock(side_effect=results))
        with pytest.raises(SystemExit) as info:
            main()
        return info.value.code

    return run


def test_the_rows_have_all_supported_versions():
    stacks = {name: Stack(name) for name in ROWS}
    torch = {stack.pin('torch').rpartition('.')[0] for stack in stacks.values()}
    numpy = {stack.pin('numpy').partition('.')[0] for stack in stacks.values()}

    assert {row.python for row in ROWS.values()} == {'3.10', '3.11', '3.12', '3.13'}
    assert torch >= {'2.1', '2.6', '2.12'}
    assert ROWS['newest'].versions['torch'] == ''
    assert numpy == {'1', '2'}
    assert {row.stack for row in ROWS.values()} == {'oldest', 'openmmlab', 'onedl'}
    for name, stack in stacks.items():
        own_pins = ROWS[name].versions.keys() - {'torch', 'torchvision', 'numpy'}
        assert all(f'\n{x}==' in stack.pins[0].read_text() for x in own_pins)


def test_the_core_tests_exist():
    for argument in matrix.CORE:
        path, _, test = argument.removeprefix('--ignore=').partition('::')
        path, test = path.removeprefix('--deselect='), test.partition('[')[0]
        assert (ROOT / path).exists()
        assert not test or f'def {test}(' in (ROOT / path).read_text()


def test_the_workflow_runs_every_row():
    jobs = yaml.safe_load((ROOT / '.github/workflows/weekly.yml').read_text())['jobs']
    command = jobs['rows']['steps'][-1]['run'].split('$(')[1].split(')')[0]
    printed = subprocess.check_output(command.split(), cwd=ROOT, text=True)

    assert json.loads(printed) == [
        {'row': name, 'python': row.python} for name, row in ROWS.items()
    ]
    assert "matrix.row == 'newest'" in jobs['core']['continue-on-error']


def test_outcomes_are_counted_in_the_report(tmp_path):
    path = tmp_path / 'core.xml'
    path.write_text(REPORT)

    outcomes = {'passed': 2, 'failed': 2, 'expected failures': 1, 'skipped': 1}
    assert count_outcomes(path) == {name: f'{n}' for name, n in outcomes.items()}


def test_a_row_replaces_its_result_and_keeps_the_others(record, run):
    assert run([PASSED], 'oldest') == 0

    written = json.loads(record.read_text())
    assert list(written['figures'].items()) == [('oldest', PASSED), ('newest', {})]
    assert (written['title'], written['commit']) == ('x', '1ab2c3d')


def test_a_row_without_an_environment_says_why_and_the_others_run(record, run, capsys):
    results = [RowError('not installed: the disk is full'), *[PASSED] * (len(ROWS) - 1)]

    assert run(results) == 1

    first, *others = json.loads(record.read_text())['figures'].values()
    assert first == {}  # as before
    assert others == [PASSED] * (len(ROWS) - 1)
    assert capsys.readouterr().err == 'oldest: not installed: the disk is full\n'


def test_failed_tests_are_the_exit_status(record, run):
    assert run([PASSED | dict(failed='1'), PASSED], 'oldest', 'onedl') == 1


def test_an_unknown_row_is_an_error_with_the_known_ones(run, capsys):
    assert run([], 'old') == 2
    error = capsys.readouterr().err
    assert f"ROW must be one of {', '.join(ROWS)}; got 'old'\n" in error


def test_a_python_that_does_not_run_is_not_taken(tmp_path, monkeypatch):
    version = '{}.{}'.format(*sys.version_info)
    shim = tmp_path / f'python{version}'
    shim.write_text('#!/bin/sh\nexit 127\n')
    shim.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)

    assert find_python(version) == sys.executable
    with pytest.raises(RowError, match=r'^python2\.9 is not on the PATH: install'):
        find_python('2.9')


@pytest.mark.parametrize('erase', ['', '\r\033[K'])  # of a terminal
def test_the_reason_of_a_failed_installation_is_one_line(erase, monkeypatch):
    lines = f'a warning\n{erase}install: torch: no space\n'
    done = Mock(returncode=1, stderr=lines)
    monkeypatch.setattr(matrix.subprocess, 'run', Mock(return_value=done))

    with pytest.raises(RowError, match='^not installed: torch: no space$'):
        install('oldest', sys.executable)


@pytest.fixture
def small_row(tmp_path, monkeypatch):
    """Let the row openmmlab have this environment, and its tests this exit status."""
    stack = Mock(venv=tmp_path / '.venv', python=sys.executable, mmcv='mmcv')
    stack.venv.mkdir()
    real_run = subprocess.run
    monkeypatch.setattr(matrix, 'Stack', lambda name: stack)
    monkeypatch.setattr(matrix, 'find_python', lambda version: sys.executable)
    monkeypatch.setattr(matrix, 'install', lambda name, python: None)

    def run(status, version='3.11.7'):
        def pytest_run(command, **options):
            if 'pytest' not in command:
                return real_run(command, **options)
            (stack.venv / 'core.xml').write_text(REPORT)
            return Mock(returncode=status)

        (stack.venv / 'pyvenv.cfg').write_text(f'home = x\nversion = {version}\n')
        monkeypatch.setattr(matrix.subprocess, 'run', pytest_run)
        return matrix.run_row('openmmlab')

    return run


def test_a_row_has_versions_outcomes_and_commit(small_row):
    result = small_row(1)

    assert result['torch'] == version('torch')
    assert (result['Python'], result['failed']) == ('3.11', '2')
    assert re.fullmatch('[0-9a-f]{7,}', result['commit'])


def test_a_row_without_tests_is_not_run(small_row):
    with pytest.raises(RowError, match='the tests did not run: exit status 5'):
        small_row(5)


def test_an_environment_with_another_python_is_kept(small_row):
    with pytest.raises(
        RowError, match=r'\.venv has Python 3\.12, and the row 3\.11: rem'
    ):
        small_row(0, '3.12.1')
