"""The decisions of the installation script, without a network or a compiler."""

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import install as script
import pytest
from install import step as install_step
from install.step import InstallError, Step

STACK = script.STACKS['openmmlab']


@pytest.fixture
def install(tmp_path, monkeypatch):
    """The script, at work in an empty project and an empty cache."""
    project = tmp_path / 'project'
    venv = project / '.venv'
    venv.mkdir(parents=True)
    constraints = project / 'constraints.txt'
    constraints.write_text('mmcv==2.1.0\ntorch==2.12.1\ntorchvision==0.27.1\n')
    (project / 'setup.py').write_text('')
    (project / 'pyproject.toml').write_text('[build-system]\nrequires = []\n[tool]\n')
    (project / 'constraints-onedl.txt').write_text('onedl-mmcv==2.3.6\ntorch==2.12.1\n')
    monkeypatch.setattr(script, 'ROOT', project)
    monkeypatch.setattr(script, 'CACHE', tmp_path / 'cache')
    monkeypatch.setattr(script, 'WHEELS', tmp_path / 'cache' / 'mmsparse' / 'wheels')
    return script


def make_sound_venv(install):
    subprocess.run(
        [sys.executable, '-m', 'venv', '--without-pip', STACK.venv], check=True
    )
    site = next(STACK.venv.glob('lib/*/site-packages'))
    (site / 'pip').mkdir()
    (site / 'pip' / '__init__.py').touch()
    (STACK.venv / 'bin' / 'pip').write_text(f'#!{STACK.python}\n')
    return site


def store_wheel(install, kind):
    store = install.WHEELS / install.wheel_key(STACK, kind)
    store.mkdir(parents=True)
    wheel = store / 'mmcv-2.1.0-py3-none-any.whl'
    wheel.touch()
    return wheel


@pytest.mark.parametrize('version', [(3, 6), (3, 9), (3, 13)])
def test_other_python_is_refused_by_name(install, version):
    found = '.'.join(map(str, version))
    with pytest.raises(
        InstallError, match=rf'is {found}: run make install PYTHON=python3.11'
    ):
        install.check_python(version)


@pytest.mark.parametrize('version', [(3, 10), (3, 11), (3, 12)])
def test_supported_python_is_accepted(install, version):
    install.check_python(version)


def test_missing_compiler_names_the_package(install, monkeypatch):
    monkeypatch.setenv('PATH', '')
    monkeypatch.delenv('CXX', raising=False)
    with pytest.raises(InstallError, match=r'no c\+\+: install the package g'):
        install.check_compiler(STACK)


def test_missing_python_header_names_the_package(install, monkeypatch, tmp_path):
    monkeypatch.setattr(install.shutil, 'which', lambda program: program)
    monkeypatch.setattr(
        install.sysconfig, 'get_paths', lambda: {'include': str(tmp_path)}
    )
    with pytest.raises(InstallError, match=r'Python\.h: .*python3-dev'):
        install.check_compiler(STACK)


def test_no_compiler_is_needed_where_mmcv_was_compiled_before(install, monkeypatch):
    monkeypatch.setenv('PATH', '')
    store_wheel(install, 'cpu')
    install.check_compiler(STACK)


def test_missing_system_library_names_the_package(install, monkeypatch):
    def load(library):
        raise OSError

    monkeypatch.setattr(install, 'CDLL', load)
    with pytest.raises(InstallError, match=r'libGL\.so\.1: .*libgl1'):
        install.check_libraries()


def set_free_disk(install, monkeypatch, gib):
    usage = namedtuple('usage', 'free')(gib * install.GIB)
    monkeypatch.setattr(install.shutil, 'disk_usage', lambda path: usage)


def test_too_little_disk_says_needed_and_free(install, monkeypatch):
    set_free_disk(install, monkeypatch, 8)
    message = r'12\.0 GiB are needed and 8\.0 GiB are free'
    with pytest.raises(InstallError, match=message):
        install.check_disk(STACK)


def test_enough_disk_is_accepted(install, monkeypatch):
    set_free_disk(install, monkeypatch, 13)
    install.check_disk(STACK)


def test_what_is_installed_already_needs_no_more_disk(install, monkeypatch):
    monkeypatch.setattr(install, 'VENV_SIZE', 2**20)
    (STACK.venv / 'torch').write_bytes(bytes(2**21))
    set_free_disk(install, monkeypatch, 0)
    install.check_disk(STACK)


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
def test_reason_is_recognized_from_the_output(output, reason):
    assert reason in install_step.reason_of(output, status=1)


def test_killed_command_is_recognized_from_its_status():
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
def test_progress_is_read_from_pip_and_ninja(line, progress):
    assert install_step.progress_of(line) == progress


def test_failing_step_is_one_line_with_reason_and_log(install, monkeypatch, capsys):
    script = 'import sys; print("[Errno 28] No space left on device"); sys.exit(1)'

    def run_failing_step(stack):
        with Step('torch', STACK.venv) as step:
            step.run(sys.executable, '-c', script)

    monkeypatch.setattr(install, 'install', run_failing_step)
    for check in ('check_compiler', 'check_libraries', 'check_disk'):
        monkeypatch.setattr(install, check, lambda *stack: None)
    monkeypatch.setattr(sys, 'argv', ['install.py'])
    log = STACK.venv / 'install.log'
    assert install.main() == 1
    message = f'make install: torch: the disk is full; the log is {log}\n'
    assert capsys.readouterr().err == message
    assert 'No space left' in log.read_text()


def test_step_runs_with_the_environments_programs_and_returns_output(install):
    script = 'import os; print(os.environ["PATH"], os.environ["MAX_JOBS"])'
    with Step('ninja', STACK.venv) as step:
        output = step.run(sys.executable, '-c', script, MAX_JOBS='2')
    assert output.startswith(f'{STACK.venv}/bin:')
    assert output.endswith(' 2\n')


def test_stamp_holds_until_what_decides_the_installation_changes(install):
    make_sound_venv(install)
    assert not install.is_installed(STACK)
    STACK.stamp.write_text(install.fingerprint(STACK))
    assert install.is_installed(STACK)
    with (install.ROOT / 'pyproject.toml').open('a') as pyproject:
        pyproject.write('[tool.ruff]\n')
    assert install.is_installed(STACK)
    STACK.constraints.write_text('mmcv==2.1.0\ntorch==2.13.0\n')
    assert not install.is_installed(STACK)


def test_stamp_does_not_hold_in_a_moved_project(install, monkeypatch):
    before = install.fingerprint(STACK)
    monkeypatch.setattr(
        install, 'ROOT', install.ROOT.rename(install.ROOT.with_name('new'))
    )
    assert install.fingerprint(STACK) != before


def test_sound_environment_is_kept(install):
    site = make_sound_venv(install)
    install.make_venv(STACK, Step('environment', STACK.venv))
    assert (site / 'pip').exists()
    assert list(STACK.temporary.iterdir()) == []


@pytest.mark.parametrize('missing', ['bin/python', 'bin/pip'])
def test_interrupted_environment_is_made_anew(install, missing):
    make_sound_venv(install)
    (STACK.venv / missing).unlink()
    (STACK.venv / 'leftover').touch()
    install.make_venv(STACK, Step('environment', STACK.venv))
    assert install.venv_is_sound(STACK)
    assert not (STACK.venv / 'leftover').exists()


def test_environment_of_another_python_is_not_sound(install, monkeypatch):
    make_sound_venv(install)
    monkeypatch.setattr(sys, 'version_info', (3, 9, 0))
    assert not install.venv_is_sound(STACK)


def test_moved_environment_is_not_sound(install):
    make_sound_venv(install)
    (STACK.venv / 'bin' / 'pip').write_text('#!/elsewhere/.venv/bin/python\n')
    assert not install.venv_is_sound(STACK)


def test_half_installed_package_is_forgotten_and_a_whole_one_kept(install):
    site = make_sound_venv(install)
    half, whole = site / 'half-1.0.dist-info', site / 'whole-1.0.dist-info'
    half.mkdir()
    whole.mkdir()
    (whole / 'INSTALLER').write_text('pip\n')
    install.make_venv(STACK, Step('environment', STACK.venv))
    assert not half.exists()
    assert whole.exists()


def test_second_installation_waits_for_the_first(install):
    code = (
        'import install, pathlib, sys\n'
        f'install.ROOT = pathlib.Path({str(install.ROOT)!r})\n'
        'install.wait_for_others()\n'
        'print("mine", flush=True)\n'
        'sys.stdin.read()\n'
    )

    def start():
        return subprocess.Popen(
            [sys.executable, '-c', code],
            cwd=Path(install.__file__).parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    with start() as first:
        assert first.stdout.readline() == 'mine\n'
        with start() as second:
            assert 'waiting for another' in second.stdout.readline()
            first.stdin.close()
            assert second.stdout.readline() == 'mine\n'


@pytest.mark.parametrize(
    ('printed', 'kind'),
    [
        ('W1121 cuda.py:1] no driver\n', 'cpu'),
        ('GPU: 9.0\n', 'cuda9.0'),
        ('Warning: old driver\nGPU: 8.0;9.0\n', 'cuda8.0+9.0'),
        ('GPU: without nvcc\n', 'cpu'),
    ],
)
def test_compiled_mmcv_is_chosen_by_the_gpus(install, monkeypatch, printed, kind):
    wheels = {k: store_wheel(install, k) for k in ('cpu', 'cuda9.0', 'cuda8.0+9.0')}
    step = Step('mmcv', STACK.venv)
    monkeypatch.setattr(step, 'run', lambda *command: printed)
    assert install.mmcv_wheel(STACK, step) == wheels[kind]


def test_gpu_without_nvcc_is_said(install, monkeypatch, capsys):
    store_wheel(install, 'cpu')
    step = Step('mmcv', STACK.venv)
    monkeypatch.setattr(step, 'run', lambda *command: 'GPU: without nvcc\n')
    install.mmcv_wheel(STACK, step)
    assert 'There is a GPU but no nvcc' in capsys.readouterr().out


def test_wheel_key_tells_torch_python_and_machine_apart(install):
    python = 'cp{}{}'.format(*sys.version_info[:2])
    machine = f'linux_{os.uname().machine}'
    key = f'mmcv2.1.0-torch2.12.1-{python}-{machine}-cpu'
    assert install.wheel_key(STACK, 'cpu') == key


def test_stacks_share_neither_environments_nor_wheels(install):
    stacks = [STACK, install.STACKS['onedl']]
    assert len({stack.venv for stack in stacks}) == 2
    keys = [install.wheel_key(stack, 'cpu') for stack in stacks]
    assert keys[1].startswith('onedl-mmcv2.3.6-torch2.12.1-')
    assert len(set(keys)) == 2


@pytest.mark.parametrize('name', sorted(script.STACKS))
def test_constraints_of_a_stack_pin_what_is_compiled(name):
    stack = script.STACKS[name]
    for package in ('torch', 'torchvision', 'setuptools', stack.mmcv):
        assert stack.pin(package)


def test_compiled_wheel_is_stored_whole_and_its_source_removed(install, monkeypatch):
    store = install.WHEELS / install.wheel_key(STACK, 'cpu')
    store.mkdir(parents=True)
    source = STACK.venv / 'build' / store.name
    source.mkdir(parents=True)
    STACK.temporary.mkdir()

    def compile_wheel(*command, **variables):
        assert variables['FORCE_CUDA'] == '0'
        (STACK.temporary / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()

    step = Step('mmcv', STACK.venv)
    monkeypatch.setattr(step, 'pip', compile_wheel)
    install.compile_mmcv(STACK, step, store, '')
    assert [path.suffix for path in store.iterdir()] == ['.whl']
    assert not source.exists()


def test_jobs_fit_cores_and_memory(install, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(8))
    for pages, jobs in ((1, 1), (4 * 2**18, 2), (64 * 2**18, 8)):
        sizes = {'SC_PHYS_PAGES': pages, 'SC_PAGE_SIZE': 4096}
        monkeypatch.setattr(os, 'sysconf', sizes.__getitem__)
        assert install.count_jobs() == jobs
