"""The command `mmsparse` and its completion."""

import os
import re
import subprocess
import sys
from pathlib import Path

import _cli

import pytest
from forked import Forked

import mmsparse
from mmsparse.cli import FOR_CLONES, command_name, find_commands, main, read_summary
from mmsparse.errors import OfficialWeightsError
from mmsparse.zoo import read_index

ROOT = Path(__file__).parents[2]
COMMANDS = find_commands()
SCRIPTS = ROOT / 'tools' / 'completion'
NANO = 'biformer-nano_1xb32-9e_digits'


@pytest.fixture
def call(tmp_path):
    """Run `mmsparse` with arguments in a fork; return the completed process."""

    def run(*arguments):
        program = tmp_path / 'program'
        program.write_text('from mmsparse.cli import main\nmain()\n')
        variables = dict(COLUMNS='80', PYTHONPATH=str(ROOT))
        return Forked(program, *arguments, cwd=tmp_path, **variables).finish()

    return run


def exit_code(monkeypatch, *arguments):
    monkeypatch.setattr(sys, 'argv', ['mmsparse', *arguments])
    with pytest.raises(SystemExit) as info:
        main()
    return info.value.code


def test_the_help_lists_every_command_on_one_screen(monkeypatch, capsys):
    assert exit_code(monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()

    assert len(lines) <= 40
    for name, path in COMMANDS.items():
        assert f'  {name:20} {read_summary(path)}' in lines


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    assert exit_code(monkeypatch, '--version') == 0
    assert capsys.readouterr().out == f'mmsparse {mmsparse.__version__}\n'


def test_every_command_is_a_file_of_tools():
    stems = {path.stem for path in (ROOT / 'tools').glob('[a-z]*.py')}

    assert {path.stem for path in COMMANDS.values()} == stems - {*FOR_CLONES}
    assert list(COMMANDS)[:3] == ['train', 'test', 'infer']
    assert command_name('get_flops') == 'flops'
    assert command_name('check_parity') == 'check-parity'


@pytest.mark.parametrize('shell', [None, 'bash'], ids=['help', 'completion'])
def test_neither_help_nor_completion_imports_torch(shell, tmp_path):
    arguments = ['completion', shell] if shell else ['--help']
    code = (
        'import atexit, sys\n'
        f'sys.argv[1:] = {arguments!r}\n'
        'heavy = {"torch", "numpy", "mmengine"}\n'
        'atexit.register(lambda: print(*heavy & {*sys.modules}, file=sys.stderr))\n'
        'from mmsparse.cli import main\n'
        'main()'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | dict(PYTHONPATH=str(ROOT)),
    )

    assert 'train' in done.stdout
    assert done.stderr == '\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_the_help_of_a_command_names_it_and_fits_on_one_screen(name, call):
    done = call(name, '--help')

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'usage: mmsparse {name} [-h]')
    assert len(lines) <= 41
    text = re.sub(r'\s+', ' ', done.stdout)
    assert read_summary(COMMANDS[name]) in text


def test_an_interrupt_during_imports_has_no_traceback(monkeypatch):
    def interrupt(path, argv):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmsparse.cli.run_file', interrupt)

    assert exit_code(monkeypatch, 'train') == 'interrupted'


@pytest.mark.parametrize(
    ('name', 'hint'),
    [
        ('trian', '; did you mean train?'),
        ('convert_annotation', '; did you mean convert-annotations'),
        ('get_flops', '; did you mean flops?'),
        ('export-onnx', '; did you mean export?'),
        ('xyz', '; see mmsparse --help'),
    ],
)
def test_an_unknown_command_has_a_hint_at_the_closest(name, hint, monkeypatch):
    error = exit_code(monkeypatch, name)

    assert error.startswith(f"error: mmsparse has no command '{name}'{hint}")


def test_a_command_takes_the_name_of_a_config_in_any_folder(call):
    done = call('flops', NANO)

    assert done.returncode == 0, done.stderr
    assert '1.52 M' in done.stdout
    done = call('flops', 'biformer-nano_digits')
    assert done.stderr.startswith(
        f'error: config: no such file: biformer-nano_digits; similar names: {NANO}'
    )
    assert done.stderr.count('\n') == 1


def test_the_exit_status_is_that_of_the_command_called(call):
    assert call('train').returncode == 2
    assert call('convert', 'no.pth', 'out.pth').returncode == 1


def test_a_hint_names_the_command_as_it_was_called(monkeypatch):
    def fail():
        raise OfficialWeightsError('official', 'a.pth')

    for program, installed, hint in (
        ('mmsparse test', True, 'mmsparse convert'),
        ('/x/.mim/tools/test.py', True, 'mim run mmsparse convert_checkpoint'),
        ('tools/test.py', False, 'python tools/convert_checkpoint.py'),
    ):
        monkeypatch.setattr(sys, 'argv', [program])
        monkeypatch.setattr(_cli, 'INSTALLED', installed)
        with pytest.raises(SystemExit, match=f'^error: official: {hint} a.pth CONV'):
            _cli.run(fail)


def test_a_missing_data_set_has_a_hint_at_the_command(call):
    done = call('test', NANO, str(next((ROOT / 'weights').glob(f'{NANO}*'))))

    assert done.stderr.endswith('create it with: mmsparse prepare-digits\n')


def test_the_completion_scripts_are_those_of_the_current_options(tmp_path):
    pytest.importorskip('shtab')
    script = ROOT / '.ci' / 'completion_scripts.py'
    done = Forked(script, '--check', cwd=tmp_path, PYTHONPATH=str(ROOT)).finish()

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ('words', 'completed'),
    [
        ('tr', {'train'}),
        ('', {*COMMANDS}),
        ('train --re', {'--resume'}),
        ('train biformer-nano_1xb32', {NANO}),
        ('train focus-detr_r50_8xb2-1', {'focus-detr_r50_8xb2-12e_coco'}),
        ('test x.py checkpoint', {'checkpoint.pth'}),
        (
            'benchmark ',
            {'ops', 'backbone', 'precision', 'detector', 'segmentor', 'export', 'gpu'},
        ),
        ('convert-annotations voc --one', {'--one-based'}),
        ('completion ', {'bash', 'zsh', 'fish'}),
        ('train --launcher p', {'pytorch'}),
    ],
)
def test_bash_completes(words, completed, tmp_path):
    (tmp_path / 'checkpoint.pth').touch()
    program = f"""
source {SCRIPTS}/mmsparse.bash
complete -p mmsparse >&2
COMP_WORDS=(mmsparse "$@"); COMP_CWORD=$#
"$(complete -p mmsparse | sed 's/.*-F \\([^ ]*\\).*/\\1/')" mmsparse "${{@: -1}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ['bash', '-c', program, 'bash', *words.split(' ')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert ' -F ' in done.stderr
    assert set(done.stdout.split()) == completed


def test_the_scripts_know_every_config():
    for shell in ('bash', 'zsh', 'fish'):
        text = (SCRIPTS / f'mmsparse.{shell}').read_text()
        assert all(re.search(rf"[ '(]{name}[ ')\n]", text) for name in read_index())


def test_the_page_has_a_row_for_every_command():
    page = (ROOT / 'docs' / 'cli.md').read_text()
    rows = (f'| `{name}` | {read_summary(path)} |' for name, path in COMMANDS.items())

    assert '\n'.join(['|---|---|', *rows, '']) in page
