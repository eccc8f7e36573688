"""The decisions of tools/install.py, without a network."""

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from unittest.mock import Mock

import pytest
from install import frameworks, mmcv, preflight
from install import main as install
from install.stack import STACKS, Stack
from install.step import Step, progress_of, reason_of

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
PYTHON = 'python{}.{}'.format(*sys.version_info[:2])


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """The stack of the command, in an empty project with an empty cache."""
    root = tmp_path / 'project'
    (root / '.venv').mkdir(parents=True)
    (root / 'constraints.txt').write_text('mmcv==2.1.0\ntorch==2.12.1\n')
    (root / 'setup.py').write_text('')
    (root / 'pyproject.toml').write_text('[build-system]\nrequires = []\n[tool]\n')
    stack = Stack('openmmlab', root, tmp_path / 'cache')
    monkeypatch.setattr(install, 'Stack', lambda name: stack)
    monkeypatch.setattr(sys, 'argv', ['install.py'])
    return stack


@pytest.fixture
def step(stack):
    return Step('step', stack.venv)


@pytest.fixture
def site(stack):
    """The folder of packages in an environment that is usable."""
    site = stack.venv / 'lib' / PYTHON / 'site-packages'
    site.mkdir(parents=True)
    stack.python.parent.mkdir()
    stack.python.symlink_to(sys.executable)
    write_program(stack.python.with_name('pip'), f'echo pip 26.3 from {site}/pip')
    return site


def write_program(path, command):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n{command}\n')
    path.chmod(0o755)


def store_wheel(stack, device):
    wheel = stack.store(device) / 'mmcv-2.1.0-py3-none-any.whl'
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    return wheel


@pytest.mark.parametrize('version', [(3, 6, 0), (3, 9, 2), (3, 14, 0)])
def test_an_unsupported_python_is_refused_by_version(monkeypatch, version):
    monkeypatch.setattr(sys, 'version_info', version)
    ast.parse((TOOLS / 'install.py').read_text(), feature_version=(3, 5))
    found = '{}.{}'.format(*version)
    with pytest.raises(SystemExit, match=f'3.10 to 3.13 is needed and .* is {found}$'):
        runpy.run_path(str(TOOLS / 'install.py'), run_name='__main__')


@pytest.mark.parametrize(
    ('works', 'incomplete', 'broken', 'options', 'chosen'),
    [
        ('python3.10 python3.12 python3.13', '', '', [], 'python3.13'),
        ('python3.10', 'python3.12', 'python3.13', [], 'python3.10'),
        ('', 'python3.10 python3.12', 'python3.13', [], 'python3.12'),
        ('python3 python3.9', '', '', [], 'python3'),
        ('python3.10 python3.12', '', '', ['STACK=oldest'], 'python3.10'),
        ('python3.12 python3.13', '', '', ['STACK=onedl'], 'python3.12'),
        ('python3.13 .venv/bin/python', '', '', [], '.venv/bin/python'),
        ('python3.13', '', '.venv/bin/python', [], 'python3.13'),
        ('python3.13', '', '', ['PYTHON=python3.10'], 'python3.10'),
    ],
)
def test_make_chooses_the_newest_python_that_works(
    tmp_path, monkeypatch, works, incomplete, broken, options, chosen
):
    # An incomplete one has no venv or headers, and fails if asked to import them; a
    # broken one may be a shim of pyenv.
    commands = {'exit 0': works, '[ -z "$2" ]': incomplete, 'exit 127': broken}
    for command, names in commands.items():
        for name in names.split():
            write_program(tmp_path / name, command)
    make = [shutil.which('make'), '-n', '-f', ROOT / 'Makefile', 'install', *options]
    monkeypatch.setenv('PATH', str(tmp_path))
    for name in ('MAKEFLAGS', 'MAKELEVEL'):
        monkeypatch.delenv(name, raising=False)
    output = subprocess.check_output(make, cwd=tmp_path, text=True)
    assert output.startswith(f'{chosen} tools/install.py --stack ')


@pytest.mark.parametrize(
    ('missing', 'message'),
    [
        ('c++', r'mmcv needs c\+\+: install the package g\+\+ \(Debian'),
        ('Python.h', r'mmcv needs .*/Python\.h: install the package python3-dev'),
        ('libGL.so.1', r'OpenCV needs libGL\.so\.1: install the package libgl1'),
    ],
)
def test_what_is_missing_is_named_with_its_package(
    stack, monkeypatch, tmp_path, missing, message
):
    include = tmp_path if missing == 'Python.h' else stack.root
    (stack.root / 'Python.h').touch()
    monkeypatch.setattr(preflight.sysconfig, 'get_path', lambda name: include)
    monkeypatch.setattr(preflight.shutil, 'which', lambda name: name != missing)
    monkeypatch.setattr(preflight, 'can_load', lambda name: name != missing)
    monkeypatch.setattr(preflight, 'check_disk', lambda stack: None)
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(SystemExit, match=message):
        install.main()
    store_wheel(stack, 'cpu')  # no compiler is needed then
    if not missing.startswith('lib'):
        preflight.check_machine(stack)


def test_too_little_disk_is_reported_with_needed_and_free_space(stack, monkeypatch):
    usage = Mock(free=8 * preflight.GIB)
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(SystemExit, match=r'12\.0 GiB are needed and 8\.0 GiB are free'):
        preflight.check_disk(stack)
    usage.free = 13 * preflight.GIB
    preflight.check_disk(stack)
    # Installed packages need no more.
    usage.free = 0
    monkeypatch.setattr(preflight, 'VENV_SIZE', 2**20)
    (stack.venv / 'torch').write_bytes(bytes(2**21))
    preflight.check_disk(stack)


@pytest.mark.parametrize(
    ('output', 'reason'),
    [
        ('OSError: [Errno 28] No space left on device: x', 'the disk is full'),
        ('fatal error: Killed signal terminated cc1plus', 'the compiler was killed'),
        ('NewConnectionError(...)\nERROR: No matching', 'index cannot be reached'),
        ('No matching distribution found for mmcv==2.1.0', 'has no mmcv==2.1.0 for'),
        ('error: incomplete-download\n', 'check the network and the free disk space'),
        ('nms.cpp:1: error: no member x\nERROR: no wheel', 'no member x'),
        ("ModuleNotFoundError: No module named 'mmseg'", "No module named 'mmseg'"),
        ('because ensurepip is not\navailable', 'install the package python3-venv'),
        ('The detected CUDA version (12.4) mismatches the', 'nvcc 12.4 does not fit'),
        ('Collecting torch\nexit status -9', 'it was killed'),
        ('Traceback\nexit status 1', 'it failed'),
    ],
)
def test_the_reason_is_found_in_the_output(output, reason):
    assert reason in reason_of(output)


@pytest.mark.parametrize(
    ('line', 'progress'),
    [
        ('  [12/77] c++ -MMD -MF nms.o.d -c nms.cpp\n', 'compiled 12 of 77 files'),
        ('Progress 52428800 of 530000000\n', 'downloaded 52 of 530 MB'),
        ('Installing collected packages: torch\n', 'installing'),
        ('Collecting torch==2.12.1\n', ''),
        ('see [1] and [2/3]\n', ''),
    ],
)
def test_progress_is_parsed_from_pip_and_ninja(line, progress):
    assert progress_of(line) == progress


def test_a_failing_step_is_one_line_with_reason_and_log(stack, step):
    script = 'import sys; print("[Errno 28] No space left on device"); sys.exit(1)'
    message = f'^install: step: the disk is full; the log is {step.log}$'
    with pytest.raises(SystemExit, match=message), step:
        step.run(sys.executable, '-c', script)
    assert 'No space left' in step.log.read_text()


@pytest.mark.parametrize(
    ('error', 'message'),
    [
        (OSError(28, 'No space left on device'), 'the disk is full'),
        (PermissionError(13, 'Permission denied'), '.*Permission denied'),
        (KeyboardInterrupt(), 'interrupted; run it again to resume'),
    ],
)
def test_an_error_of_the_command_is_one_line(stack, monkeypatch, error, message):
    monkeypatch.setattr(install, 'lock', Mock(side_effect=error))
    with pytest.raises(SystemExit, match=f'^install: {message}$'):
        install.main()


def test_a_step_runs_with_the_environments_programs_and_returns_output(stack, step):
    output = step.run('sh', '-c', 'echo $PATH $MAX_JOBS', MAX_JOBS='2')
    assert output.startswith(f'{stack.venv}/bin:')
    assert output.endswith(' 2\n')


def test_an_installation_is_valid_until_its_sources_change(stack, site, capsys):
    assert not install.is_installed(stack)
    stack.stamp.write_text(install.fingerprint(stack))
    with (stack.root / 'pyproject.toml').open('a') as pyproject:
        pyproject.write('[tool.ruff]\n')
    install.main()
    assert capsys.readouterr().out == '.venv is ready: source .venv/bin/activate\n'
    stack.constraints.write_text('mmcv==2.1.0\ntorch==2.13.0\n')
    assert not install.is_installed(stack)


def test_packages_of_a_usable_environment_are_kept_if_complete(stack, site, step):
    for name in ('partial', 'complete'):
        (site / f'{name}-1.0.dist-info').mkdir()
    (site / 'complete-1.0.dist-info' / 'INSTALLER').write_text('pip\n')
    install.create_venv(stack, step)
    assert os.listdir(site) == ['complete-1.0.dist-info']
    assert os.listdir(stack.temporary) == []


def test_an_environment_of_another_python_or_place_is_not_usable(
    stack, site, monkeypatch
):
    assert install.is_usable(stack)
    moved = Stack('openmmlab', stack.root.with_name('moved'))
    shutil.copytree(stack.root, moved.root, symlinks=True)
    assert not install.is_usable(moved)
    stack.stamp.write_text(install.fingerprint(stack))
    shutil.copyfile(stack.stamp, moved.stamp)
    assert not install.is_installed(moved)
    monkeypatch.setattr(sys, 'version_info', (3, 9, 0))
    assert not install.is_usable(stack)


def test_a_row_of_the_matrix_is_installed_with_its_python(monkeypatch):
    monkeypatch.setattr(sys, 'version_info', (3, 11, 7))

    install.check_python('onedl')  # a stack runs with several
    with pytest.raises(SystemExit) as end:
        install.check_python('torch-2.6')

    assert str(end.value).endswith(
        'torch-2.6 is for Python 3.12, and this is 3.11: run make install '
        'STACK=torch-2.6 PYTHON=python3.12'
    )


def test_a_row_has_the_versions_of_its_stack_except_its_own(stack):
    stack.constraints.write_text('mmcv==2.1.0\nsympy==1\ntorch==2.12.1\n')
    older = Stack('torch-2.6', stack.root, stack.wheels)
    assert (older.pin('mmcv'), older.pin('torch')) == ('2.1.0', '2.6.0')
    assert older.read_pins().count('sympy==') == 1
    assert older.constraints == stack.root / '.venv-torch-2.6' / 'constraints.txt'


def test_the_newest_version_is_known_once_it_is_installed(stack):
    newest = Stack('newest', stack.root, stack.wheels.parents[1])
    store_wheel(stack, 'cpu')  # for another torch
    assert newest.pin('torch') == ''
    assert not newest.is_compiled()
    installed = (
        newest.venv / 'lib' / PYTHON / 'site-packages' / 'torch-2.14.1.dist-info'
    )
    installed.mkdir(parents=True)
    assert newest.pin('torch') == '2.14.1'
    assert '-torch2.14.1-' in newest.store('cpu').name


def test_an_interrupted_environment_is_created_again(stack, site, step, monkeypatch):
    commands = []
    monkeypatch.setattr(step, 'run', lambda *command: commands.append(command))
    (stack.venv / 'bin' / 'pip').unlink()
    install.create_venv(stack, step)
    assert commands == [(Path(sys.executable).resolve(), '-m', 'venv', stack.venv)]
    assert os.listdir(stack.venv) == ['tmp']


def test_a_second_installation_waits_for_the_first(stack):
    code = (
        f'from install.main import lock; lock({str(stack.root)!r})\n'
        'print("locked", flush=True); input()'
    )

    def start():
        pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
        return subprocess.Popen([sys.executable, '-c', code], cwd=TOOLS, **pipes)

    with start() as first:
        assert first.stdout.readline() == 'locked\n'
        with start() as second:
            assert 'waiting for another' in second.stdout.readline()
            first.communicate('\n')
            assert second.communicate('\n')[0] == 'locked\n'


def test_frameworks_are_installed_on_top_of_the_stack(stack, site, monkeypatch, capsys):
    overlay = Stack('frameworks', stack.root, stack.wheels)
    overlay.constraints.write_text('transformers==5.24.0\n')
    (site / 'of_the_stack.py').touch()
    pip = Mock()
    monkeypatch.setattr(install, 'Stack', lambda name: overlay)
    monkeypatch.setattr(frameworks, 'MODULES', 'of_the_stack')
    monkeypatch.setattr(Step, 'pip', pip)

    install.main()
    install.main()  # which does nothing

    pins = ('-c', stack.constraints, '-c', overlay.constraints)
    assert pip.call_args.args[:5] == ('install', *pins)
    assert pip.call_count == 1
    assert capsys.readouterr().out.endswith(
        '.venv-frameworks is ready: source .venv-frameworks/bin/activate\n' * 2
    )
    stack.constraints.write_text('torch==2.13.0\n')
    assert not install.is_installed(overlay)


def test_frameworks_need_a_stack(stack):
    overlay = Stack('frameworks', stack.root, stack.wheels)
    with pytest.raises(SystemExit, match=r'need \.venv: run make install first$'):
        frameworks.install_frameworks(overlay)


def test_every_framework_has_a_pin():
    overlay = Stack('frameworks')
    for package in frameworks.PACKAGES:
        assert re.search(rf'^{package}==', overlay.constraints.read_text(), re.M)


@pytest.mark.parametrize(
    ('printed', 'device'),
    [
        ('W1121 cuda.py:1] no driver\n', 'cpu'),
        ('GPU: 9.0\n', 'cuda9.0'),
        ('Warning: old driver\nGPU: 8.0;9.0\n', 'cuda8.0+9.0'),
        ('GPU: without nvcc\n', 'cpu'),
    ],
)
def test_mmcv_fits_the_gpus(stack, step, monkeypatch, capsys, printed, device):
    wheels = {x: store_wheel(stack, x) for x in ('cpu', 'cuda9.0', 'cuda8.0+9.0')}
    monkeypatch.setattr(step, 'run', lambda *command: printed)
    assert mmcv.mmcv_wheel(stack, step) == wheels[device]
    warned = 'There is a GPU but no nvcc' in capsys.readouterr().out
    assert warned == ('without nvcc' in printed)


@pytest.mark.parametrize('name', STACKS)
def test_compiled_wheels_are_kept_by_versions_and_machine(name):
    stack = Stack(name)
    python = PYTHON.replace('python', 'cp').replace('.', '')
    packages = f'{stack.mmcv}{stack.pin(stack.mmcv)}-torch{stack.pin("torch")}'
    folder = f'{packages}-{python}-linux_{os.uname().machine}-cpu'
    assert stack.store('cpu').name == folder
    assert stack.pin('torchvision')
    assert stack.pin('setuptools')


def test_a_wheel_is_compiled_from_the_prepared_source(stack, step, monkeypatch):
    def run_pip(command, *arguments, **variables):
        if command == 'download':
            folder = stack.temporary / 'mmcv-2.1.0'
            folder.mkdir()
            (folder / 'version.py').write_text("__version__ = '2.1.0'\n")
            # Like mmcv's: Python 3.13 does not let exec() add to locals().
            (folder / 'setup.py').write_text(
                'def get_version():\n'
                "    exec(compile(open('version.py').read(), 'version.py', 'exec'))\n"
                "    return locals()['__version__']\n"
                'version = get_version()\n'
            )
            shutil.make_archive(folder, 'gztar', stack.temporary, folder.name)
            shutil.rmtree(folder)
        else:
            *_, store, source = arguments
            monkeypatch.chdir(source)
            assert runpy.run_path('setup.py')['version'] == '2.1.0'
            assert variables['FORCE_CUDA'] == '0'
            store.mkdir(parents=True)
            (store / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()

    monkeypatch.setattr(step, 'pip', run_pip)
    monkeypatch.setattr(step, 'run', lambda *command: '')
    wheel = mmcv.mmcv_wheel(stack, step)
    assert list(stack.store('cpu').iterdir()) == [wheel]
    assert not any(stack.venv.glob('build-*'))


def test_mmcv_alone_is_installed_next_to_the_torch_of_this_python(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(install, 'Stack', partial(Stack, cache=tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['install.py', '--mmcv', '--stack', 'onedl'])
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    monkeypatch.setattr(install, 'version', {'torch': '2.13.0'}.__getitem__)
    monkeypatch.setattr(install, 'check_compiler', lambda stack: None)
    monkeypatch.setattr(Step, 'run', lambda step, *_: step.log.touch() or '')
    called = []
    monkeypatch.setattr(Step, 'pip', lambda step, *words: called.append(words))
    python = PYTHON.replace('python', 'cp').replace('.', '')
    stack = Stack('onedl', cache=tmp_path / 'cache', versions={'torch': '2.13.0'})
    wheel = store_wheel(stack, 'cpu')

    install.main()

    assert f'-torch2.13.0-{python}-' in str(wheel)
    assert {'pip', 'setuptools', 'wheel', 'ninja'} < {*called[0]}
    assert [words[-1] for words in called] == ['ninja', wheel]
    assert 'mmcv with its operators: ' in capsys.readouterr().out
    assert os.listdir(tmp_path) == ['cache']  # neither temporary files nor a log


def test_mmcv_alone_is_compiled_for_a_stack(monkeypatch):
    argv = ['install.py', '--mmcv', '--stack', 'frameworks']
    monkeypatch.setattr(sys, 'argv', argv)
    message = '--mmcv takes --stack oldest, onedl or openmmlab; got frameworks'
    with pytest.raises(SystemExit, match=f'^install: {message}$'):
        install.main()


def test_mmcv_alone_needs_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['install.py', '--mmcv'])
    monkeypatch.setattr(sys, 'prefix', str(tmp_path))
    error = PackageNotFoundError('torch')
    monkeypatch.setattr(install, 'version', Mock(side_effect=error))
    with pytest.raises(SystemExit, match=f'^install: {tmp_path} has no torch'):
        install.main()


def test_joined_sources_may_repeat_names_and_define_min(tmp_path):
    (tmp_path / 'torch').mkdir()
    for name in ('torch/extension.h', 'torch/script.h'):
        (tmp_path / name).touch()
    code = 'int add(int min) {{ return min; }}\nint {}() {{ return add(1); }}\n'
    for name in ('one', 'two'):
        text = code.format(name) + '#define min 2\n'
        (tmp_path / f'{name}.cpp').write_text(text)
    mmcv.join_sources(sorted(tmp_path.glob('*.cpp')))
    (joined,) = tmp_path.glob('*.cpp')
    subprocess.run(['c++', '-fsyntax-only', '-I', tmp_path, joined], check=True)


def test_jobs_fit_cores_and_memory_unless_given(monkeypatch):
    monkeypatch.delenv('MAX_JOBS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8))
    for pages, jobs in ((1, 1), (6 * 2**18, 2), (64 * 2**18, 8)):
        sizes = {'SC_PHYS_PAGES': pages, 'SC_PAGE_SIZE': 4096}
        monkeypatch.setattr(os, 'sysconf', sizes.__getitem__)
        assert mmcv.count_jobs() == jobs
    monkeypatch.setenv('MAX_JOBS', '3')
    assert mmcv.count_jobs() == 3
