"""A command in a fork behaves like one in a new process."""

import signal

import pytest
from forked import ROOT, Forked


@pytest.fixture
def run(tmp_path):
    """Run a program with an argument; return the completed process."""

    def run_program(code, **options):
        program = tmp_path / 'program.py'
        program.write_text(f'import os, sys, warnings\n{code}')
        return Forked(program, 'x', cwd=tmp_path, **options).finish()

    return run_program


def test_it_has_arguments_folder_and_environment(run, tmp_path):
    code = "print(*sys.argv, __name__, os.getcwd(), os.environ['COLOR'])"

    done = run(code, COLOR='red')

    expected = [tmp_path / 'program.py', 'x', '__main__', tmp_path, 'red']
    assert done.stdout.split() == list(map(str, expected))
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize(
    ('code', 'status', 'printed'),
    [
        ('sys.exit(3)', 3, ''),
        ("sys.exit('error: no')", 1, 'error: no\n'),
        (f'os.kill(os.getpid(), {signal.SIGKILL:d})', -signal.SIGKILL, ''),
        ("os.system('echo below >&2')", 0, 'below\n'),
        ("warnings.warn('hidden')", 0, ''),
    ],
)
def test_it_ends_as_a_process_does(run, code, status, printed):
    done = run(code)

    assert (done.returncode, done.stderr) == (status, printed)


def test_an_exception_has_a_traceback_and_warnings_may_be_shown(run):
    done = run("warnings.warn('shown')\n1 / 0", warn=True)

    assert done.returncode == 1
    assert 'UserWarning: shown' in done.stderr
    assert 'Traceback' in done.stderr
    assert done.stderr.endswith('ZeroDivisionError: division by zero\n')


def test_it_finds_what_a_new_process_finds_and_has_not_imported_mmsparse(run, tmp_path):
    code = "print(*sys.path, sep='\\n')\nprint('mmsparse' in sys.modules)"

    *paths, imported = run(code, PYTHONPATH='a:b').stdout.splitlines()

    assert paths[:3] == [str(tmp_path), 'a', 'b']
    assert str(ROOT / 'tests') not in paths and str(ROOT / 'tools') not in paths
    assert any(path.endswith('site-packages') for path in paths)
    assert imported == 'False'
