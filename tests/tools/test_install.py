"""The decisions of tools/install.py, without a network or a compiler."""

import ast
import dataclasses
import os
import runpy
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from install import main as install
from install import mmcv, preflight
from install import step as install_step
from install.stack import STACKS
from install.step import InstallError, Step

TOOLS = Path(__file__).parents[2] / 'tools'


@pytest.fixture
def stack(tmp_path):
    """A stack in an empty project, with an empty cache."""
    root = tmp_path / 'project'
    (root / '.venv').mkdir(parents=True)
    constraints = root / 'constraints.txt'
    constraints.write_text('mmcv==2.1.0\ntorch==2.12.1\ntorchvision==0.27.1\n')
    (root / 'setup.py').write_text('')
    (root / 'pyproject.toml').write_text('[build-system]\nrequires = []\n[tool]\n')
    (root / 'constraints-onedl.txt').write_text('onedl-mmcv==2.3.6\ntorch==2.12.1\n')
    return dataclasses.replace(STACKS['openmmlab'], root=root, cache=tmp_path / 'cache')


def make_usable_venv(stack):
    subprocess.run(
        [sys.executable, '-m', 'venv', '--without-pip', stack.venv], check=True
    )
    site = next(stack.venv.glob('lib/*/site-packages'))
    (site / 'pip').mkdir()
    (site / 'pip' / '__init__.py').touch()
    (stack.venv / 'bin' / 'pip').write_text(f'#!{stack.python}\n')
    return site


def store_wheel(stack, device):
    store = stack.wheels(device)
    store.mkdir(parents=True)
    wheel = store / 'mmcv-2.1.0-py3-none-any.whl'
    wheel.touch()
    return wheel


def run_command(monkeypatch, version=sys.version_info):
    monkeypatch.setattr(sys, 'version_info', version)
    monkeypatch.setattr(sys, 'argv', ['install.py', '--help'])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOLS / 'install.py'), run_name='__main__')
    return end.value.code


@pytest.mark.parametrize('version', [(3, 6, 0), (3, 9, 2), (3, 13, 0)])
def test_an_unsupported_python_is_refused_by_version(monkeypatch, version):
    found = '.'.join(map(str, version[:2]))
    message = run_command(monkeypatch, version)
    assert message.endswith(f'is {found}: run make install PYTHON=python3.11')


def test_a_supported_python_is_accepted(monkeypatch, capsys):
    assert run_command(monkeypatch) == 0
    assert '--stack {oldest,onedl,openmmlab}' in capsys.readouterr().out


def test_old_pythons_can_read_the_command():
    ast.parse((TOOLS / 'install.py').read_text(), feature_version=(3, 5))


def test_a_missing_compiler_is_reported_with_its_package(stack, monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(InstallError, match=r'no c\+\+: install the package g'):
        preflight.check_compiler(stack)


def test_a_missing_python_header_is_reported_with_its_package(
    stack, monkeypatch, tmp_path
):
    monkeypatch.setattr(preflight.shutil, 'which', lambda program: program)
    monkeypatch.setattr(
        preflight.sysconfig, 'get_paths', lambda: {'include': str(tmp_path)}
    )
    with pytest.raises(InstallError, match=r'Python\.h: .*python3-dev'):
        preflight.check_compiler(stack)


def test_no_compiler_is_needed_if_mmcv_was_compiled_before(stack, monkeypatch):
    monkeypatch.setenv('PATH', '')
    store_wheel(stack, 'cpu')
    preflight.check_compiler(stack)


def test_a_missing_system_library_is_reported_with_its_package(monkeypatch):
    def load(library):
        raise OSError

    monkeypatch.setattr(preflight, 'CDLL', load)
    with pytest.raises(InstallError, match=r'libGL\.so\.1: .*libgl1'):
        preflight.check_libraries()


def set_free_disk(monkeypatch, gib):
    usage = namedtuple('usage', 'free')(gib * preflight.GIB)
    monkeypatch.setattr(preflight.shutil, 'disk_usage', lambda path: usage)


def test_too_little_disk_is_reported_with_needed_and_free_space(stack, monkeypatch):
    set_free_disk(monkeypatch, 8)
    message = r'12\.0 GiB are needed and 8\.0 GiB are free'
    with pytest.raises(InstallError, match=message):
        preflight.check_disk(stack)


def test_enough_disk_is_accepted(stack, monkeypatch):
    set_free_disk(monkeypatch, 13)
    preflight.check_disk(stack)


def test_installed_packages_need_no_more_disk(stack, monkeypatch):
    monkeypatch.setattr(preflight, 'VENV_SIZE', 2**20)
    (stack.venv / 'torch').write_bytes(bytes(2**21))
    set_free_disk(monkeypatch, 0)
    preflight.check_disk(stack)


@pytest.mark.parametrize(
    ('output', 'reason'),
    [
        ('OSError: [Errno 28] No space left on device: x', 'the disk is full'),
        ('fatal error: error writing to x.s: No space left on device', 'disk is full'),
        (
            'g++: fatal error: Killed signal terminated program cc1plus',
            'the compiler was killed',
        ),
        (
            'Retrying after connection broken by NewConnectionError(...)\n'
            'ERROR: No matching distribution found for torch==2.12.1',
            'the package index cannot be reached',
        ),
        (
            'ERROR: No matching distribution found for torch==2.12.1',
            'the package index has no torch==2.12.1',
        ),
        ('error: incomplete-download\n', 'check the network and the free disk space'),
        ('nms.cpp:1: error: no member x\nERROR: no wheel', 'no member x'),
        ("ModuleNotFoundError: No module named 'mmseg'", "No module named 'mmseg'"),
        ('because ensurepip is not\navailable', 'install the package python3-venv'),
        (
            'RuntimeError: The detected CUDA version (12.4) mismatches the version',
            'nvcc 12.4 does not fit this torch',
        ),
    ],
)
def test_the_reason_is_found_in_the_output(output, reason):
    assert reason in install_step.reason_of(output, status=1)


def test_a_killed_command_is_recognized_by_its_status():
    assert 'it was killed' in install_step.reason_of('', status=-9)
    assert install_step.reason_of('Traceback', status=1) == 'it failed'


@pytest.mark.parametrize(
    ('line', 'progress'),
    [
        ('  [12/77] c++ -MMD -MF nms.o.d -c nms.cpp\n', 'compiled 12 of 77 files'),
        ('[77/77] c++\n', 'compiled 77 of 77 files'),
        ('Progress 52428800 of 530000000\n', 'downloaded 52 of 530 MB'),
        ('Installing collected packages: torch\n', 'installing'),
        ('Collecting torch==2.12.1\n', ''),
        ('see [1] and [2/3]\n', ''),
    ],
)
def test_progress_is_parsed_from_pip_and_ninja(line, progress):
    assert install_step.progress_of(line) == progress


def test_a_failing_step_is_one_line_with_reason_and_log(stack, monkeypatch, capsys):
    script = 'import sys; print("[Errno 28] No space left on device"); sys.exit(1)'

    def run_failing_step(stack):
        with Step('torch', stack.venv) as step:
            step.run(sys.executable, '-c', script)

    monkeypatch.setattr(install, 'install', run_failing_step)
    monkeypatch.setattr(install, 'check_machine', lambda stack: None)
    monkeypatch.setitem(STACKS, 'openmmlab', stack)
    monkeypatch.setattr(sys, 'argv', ['install.py'])
    log = stack.venv / 'install.log'
    assert install.main() == 1
    message = f'make install: torch: the disk is full; the log is {log}\n'
    assert capsys.readouterr().err == message
    assert 'No space left' in log.read_text()


def test_an_installed_environment_is_reported_with_its_activation(
    stack, monkeypatch, capsys
):
    make_usable_venv(stack)
    stack.stamp.write_text(install.fingerprint(stack))
    monkeypatch.setitem(STACKS, 'openmmlab', stack)
    monkeypatch.setattr(sys, 'argv', ['install.py'])
    assert install.main() == 0
    assert capsys.readouterr().out == '.venv is ready: source .venv/bin/activate\n'


def test_a_step_runs_with_the_environments_programs_and_returns_output(stack):
    script = 'import os; print(os.environ["PATH"], os.environ["MAX_JOBS"])'
    with Step('ninja', stack.venv) as step:
        output = step.run(sys.executable, '-c', script, MAX_JOBS='2')
    assert output.startswith(f'{stack.venv}/bin:')
    assert output.endswith(' 2\n')


def test_an_installation_is_valid_until_its_sources_change(stack):
    make_usable_venv(stack)
    assert not install.is_installed(stack)
    stack.stamp.write_text(install.fingerprint(stack))
    assert install.is_installed(stack)
    with (stack.root / 'pyproject.toml').open('a') as pyproject:
        pyproject.write('[tool.ruff]\n')
    assert install.is_installed(stack)
    stack.constraints.write_text('mmcv==2.1.0\ntorch==2.13.0\n')
    assert not install.is_installed(stack)


def test_an_installation_is_invalid_in_a_moved_project(stack):
    before = install.fingerprint(stack)
    root = stack.root.rename(stack.root.with_name('new'))
    assert install.fingerprint(dataclasses.replace(stack, root=root)) != before


def test_a_usable_environment_is_kept(stack):
    site = make_usable_venv(stack)
    install.create_venv(stack, Step('environment', stack.venv))
    assert (site / 'pip').exists()
    assert list(stack.temporary.iterdir()) == []


@pytest.mark.parametrize('missing', ['bin/python', 'bin/pip'])
def test_an_interrupted_environment_is_created_again(stack, missing):
    make_usable_venv(stack)
    (stack.venv / missing).unlink()
    (stack.venv / 'leftover').touch()
    install.create_venv(stack, Step('environment', stack.venv))
    assert install.is_usable(stack)
    assert not (stack.venv / 'leftover').exists()


def test_an_environment_of_another_python_is_not_usable(stack, monkeypatch):
    make_usable_venv(stack)
    monkeypatch.setattr(sys, 'version_info', (3, 9, 0))
    assert not install.is_usable(stack)


def test_a_moved_environment_is_not_usable(stack):
    make_usable_venv(stack)
    (stack.venv / 'bin' / 'pip').write_text('#!/elsewhere/.venv/bin/python\n')
    assert not install.is_usable(stack)


def test_a_partly_installed_package_is_removed_and_a_complete_one_kept(stack):
    site = make_usable_venv(stack)
    partial, complete = site / 'partial-1.0.dist-info', site / 'complete-1.0.dist-info'
    partial.mkdir()
    complete.mkdir()
    (complete / 'INSTALLER').write_text('pip\n')
    install.create_venv(stack, Step('environment', stack.venv))
    assert not partial.exists()
    assert complete.exists()


def test_a_second_installation_waits_for_the_first(stack):
    code = (
        'import pathlib, sys\n'
        'from install import main\n'
        f'main.lock(pathlib.Path({str(stack.root)!r}))\n'
        'print("locked", flush=True)\n'
        'sys.stdin.read()\n'
    )

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', code],
            cwd=TOOLS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start() as first:
        assert first.stdout.readline() == 'locked\n'
        with start() as second:
            assert 'waiting for another' in second.stdout.readline()
            first.stdin.close()
            assert second.stdout.readline() == 'locked\n'


@pytest.mark.parametrize(
    ('printed', 'device'),
    [
        ('W1121 cuda.py:1] no driver\n', 'cpu'),
        ('GPU: 9.0\n', 'cuda9.0'),
        ('Warning: old driver\nGPU: 8.0;9.0\n', 'cuda8.0+9.0'),
        ('GPU: without nvcc\n', 'cpu'),
    ],
)
def test_the_compiled_mmcv_fits_the_gpus(stack, monkeypatch, capsys, printed, device):
    wheels = {x: store_wheel(stack, x) for x in ('cpu', 'cuda9.0', 'cuda8.0+9.0')}
    step = Step('mmcv', stack.venv)
    monkeypatch.setattr(step, 'run', lambda *command: printed)
    assert mmcv.mmcv_wheel(stack, step) == wheels[device]
    warned = 'There is a GPU but no nvcc' in capsys.readouterr().out
    assert warned == ('without nvcc' in printed)


def test_compiled_wheels_are_kept_by_torch_python_and_machine(stack):
    python = 'cp{}{}'.format(*sys.version_info[:2])
    machine = f'linux_{os.uname().machine}'
    name = f'mmcv2.1.0-torch2.12.1-{python}-{machine}-cpu'
    assert stack.wheels('cpu').name == name


def test_stacks_share_neither_environments_nor_wheels(stack):
    onedl = dataclasses.replace(STACKS['onedl'], root=stack.root, cache=stack.cache)
    assert stack.venv != onedl.venv
    assert onedl.wheels('cpu').name.startswith('onedl-mmcv2.3.6-torch2.12.1-')
    assert stack.wheels('cpu') != onedl.wheels('cpu')


@pytest.mark.parametrize('stack', STACKS.values(), ids=STACKS)
def test_constraints_of_a_stack_pin_what_is_compiled(stack):
    for package in ('torch', 'torchvision', 'setuptools', stack.mmcv):
        assert stack.pin(package)


def test_a_compiled_wheel_is_stored_complete_and_its_source_removed(stack, monkeypatch):
    store = stack.wheels('cpu')
    store.mkdir(parents=True)
    source = stack.venv / 'build' / store.name
    source.mkdir(parents=True)
    stack.temporary.mkdir()

    def compile_wheel(*command, **variables):
        assert variables['FORCE_CUDA'] == '0'
        (stack.temporary / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()

    step = Step('mmcv', stack.venv)
    monkeypatch.setattr(step, 'pip', compile_wheel)
    mmcv.compile_mmcv(stack, step, store, '')
    assert [path.suffix for path in store.iterdir()] == ['.whl']
    assert not source.exists()


def test_jobs_fit_cores_and_memory(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8))
    for pages, jobs in ((1, 1), (4 * 2**18, 2), (64 * 2**18, 8)):
        sizes = {'SC_PHYS_PAGES': pages, 'SC_PAGE_SIZE': 4096}
        monkeypatch.setattr(os, 'sysconf', sizes.__getitem__)
        assert mmcv.count_jobs() == jobs
