"""Make an environment with mmsparse and its hosts: what `make install` runs.

Run it with the Python that the environment shall have, 3.10 to 3.12. A second run finds
everything done; an interrupted one is finished by the next: pip passes over what is
there, and ninja goes on compiling mmcv at the file where it stopped. The compiled mmcv
is kept in ~/.cache/mmsparse/wheels for the next clone. Each stack of hosts has an
environment of its own: .venv, .venv-onedl, .venv-oldest.
"""

# Standard library only; and old Pythons must be able to read it as far as
# check_python(), which tells their users what to do: no `list[str]`, no `X | Y`.

import argparse
import errno
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from ctypes import CDLL
from pathlib import Path
from typing import NamedTuple

from install.step import InstallError, Step, clear_line

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
WHEELS = CACHE / 'mmsparse' / 'wheels'

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
SHOW = '--progress-bar=raw'  # Lines that a Step can read; pip 24.1 brought them.
MODULES = 'torchvision, mmcv.ops, mmdet, mmpretrain, mmseg, mim, mmsparse'

GIB = 2**30
VENV_SIZE = 5.7 * GIB  # Measured with torch 2.12.1, as is the next.
WHEEL_SHARE = 0.55  # Size of a wheel by that of the files in it.
MEMORY_PER_JOB = 2 * GIB

# Says for which GPUs to compile, if there are any and nvcc is there.
PROBE_CUDA = """
import os, torch
from torch.utils.cpp_extension import CUDA_HOME
if torch.cuda.is_available():
    devices = range(torch.cuda.device_count())
    found = {torch.cuda.get_device_capability(device) for device in devices}
    nvcc = CUDA_HOME and os.path.exists(os.path.join(CUDA_HOME, 'bin', 'nvcc'))
    names = ';'.join('%d.%d' % pair for pair in sorted(found))
    print('GPU:', names if nvcc else 'without nvcc')
"""

NO_NVCC = """There is a GPU but no nvcc, so mmcv gets CPU operators only and detectors
will not run on the GPU. If they shall: install the CUDA toolkit, remove .venv and run
make install again."""


class Stack(NamedTuple):
    """Hosts that are installed together, at which versions, and where."""

    extra: str  # of setup.py
    mmcv: str  # what mmcv is called on the package index
    constraints_file: str
    folder: str

    @property
    def constraints(self) -> Path:
        """File with the version of every package."""
        return ROOT / self.constraints_file

    @property
    def venv(self) -> Path:
        """The environment."""
        return ROOT / self.folder

    @property
    def python(self) -> Path:
        """The environment's Python."""
        return self.venv / 'bin' / 'python'

    @property
    def stamp(self) -> Path:
        """File that says what was installed, once all of it was."""
        return self.venv / '.mmsparse-installed'

    @property
    def temporary(self) -> Path:
        """Folder for files that do not outlive the installation."""
        return self.venv / 'tmp'

    def pin(self, package: str) -> str:
        """Version at which the constraints hold a package."""
        pins = self.constraints.read_text()
        return re.search(rf'^{package}==(\S+)', pins, re.M).group(1)


STACKS = {
    'openmmlab': Stack('openmmlab', 'mmcv', 'constraints.txt', '.venv'),
    'oldest': Stack('openmmlab', 'mmcv', 'constraints-oldest.txt', '.venv-oldest'),
    'onedl': Stack('onedl', 'onedl-mmcv', 'constraints-onedl.txt', '.venv-onedl'),
}


def main() -> int:
    """Install what is not installed yet; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--stack',
        choices=sorted(STACKS),
        default='openmmlab',
        help='the hosts: the newest or the oldest supported of OpenMMLab, or the '
        'newest of the OneDL forks',
    )
    stack = STACKS[parser.parse_args().stack]
    try:
        check_python(sys.version_info[:2])
        if not is_installed(stack):
            wait_for_others()
        if is_installed(stack):
            print(f'{stack.folder} is ready')
        else:
            check_compiler(stack)
            check_libraries()
            check_disk(stack)
            install(stack)
    except InstallError as error:
        return fail(error)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return fail('the disk is full' if full else error)
    except KeyboardInterrupt:
        return fail('interrupted; the next make install goes on from here')
    return 0


def fail(message: object) -> int:
    """Print why it stopped; return the exit status."""
    print(f'{clear_line()}make install: {message}', file=sys.stderr)
    return 1


def check_python(version: tuple) -> None:
    """Refuse a Python that the hosts do not run on."""
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        found = '.'.join(map(str, version))
        raise InstallError(
            f'Python 3.10, 3.11 or 3.12 is needed and {sys.executable} is {found}: '
            'run make install PYTHON=python3.11'
        )


def check_compiler(stack: Stack) -> None:
    """Refuse to start if mmcv has to be compiled and cannot be."""
    if any(WHEELS.glob(f'{wheel_key(stack, "*")}/*.whl')):
        return
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if not shutil.which(compiler):
        raise InstallError(
            f'mmcv has to be compiled and there is no {compiler}: '
            'install the package g++ (Debian, Ubuntu) or gcc-c++ (RHEL, Fedora)'
        )
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        raise InstallError(
            f'mmcv has to be compiled and there is no {header}: '
            'install the package python3-dev (Debian, Ubuntu) or python3-devel '
            '(RHEL, Fedora)'
        )


def check_libraries() -> None:
    """Refuse to start without the system libraries that OpenCV loads."""
    for library in ('libGL.so.1', 'libglib-2.0.so.0'):
        try:
            CDLL(library)
        except OSError:
            raise InstallError(
                f'OpenCV needs {library}: install the packages libgl1 and libglib2.0-0 '
                '(Debian, Ubuntu) or mesa-libGL and glib2 (RHEL, Fedora)'
            ) from None


def check_disk(stack: Stack) -> None:
    """Refuse to start if the packages do not fit the disk."""
    present = sum(path.lstat().st_blocks * 512 for path in stack.venv.rglob('*'))
    copies = (
        2 if device_of(CACHE) == device_of(stack.venv) else 1
    )  # pip's cache has one.
    needed = (VENV_SIZE - present) * (1 + WHEEL_SHARE * copies)
    free = shutil.disk_usage(str(ROOT)).free
    if free < needed:
        raise InstallError(
            f'the disk of {ROOT} is too full: '
            f'{needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB are free'
        )


def device_of(path: Path) -> int:
    """Number of the file system on which a path is, or would be made."""
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev


def is_installed(stack: Stack) -> bool:
    """Whether the last installation was completed and would be the same today."""
    done = stack.python.exists() and stack.stamp.is_file()
    return done and stack.stamp.read_text() == fingerprint(stack)


def fingerprint(stack: Stack) -> str:
    """Hash of all that decides what gets installed."""
    pyproject = (ROOT / 'pyproject.toml').read_text()
    build_system = pyproject.split('[build-system]')[1].split('\n[')[0]
    files = (ROOT / 'setup.py', stack.constraints, Path(__file__))
    parts = [str(stack.venv), str(sys.version_info[:2]), build_system]
    parts += [file.read_text() for file in files]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def wait_for_others() -> None:
    """Let no two installations work at once, nor one beside a killed one's pip.

    The lock lasts until this process and those that it starts have ended.
    """
    folder = os.open(str(ROOT), os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('waiting for another make install to end ...', flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)


def install(stack: Stack) -> None:
    """Go through the steps; each passes quickly over what is done."""
    pinned = ('-c', stack.constraints)
    with Step('virtual environment', stack.venv) as step:
        make_venv(stack, step)
    with Step('pip, setuptools, wheel, ninja', stack.venv) as step:
        step.pip('install', *pinned, 'pip', 'setuptools', 'wheel', 'ninja')
    with Step('torch and torchvision', stack.venv) as step:
        step.pip('install', *pinned, SHOW, 'torch', 'torchvision')
    with Step('mmcv with its operators', stack.venv) as step:
        step.pip('install', '--no-deps', '--force-reinstall', mmcv_wheel(stack, step))
    with Step('hosts, tools and mmsparse', stack.venv) as step:
        package = ('--no-build-isolation', '-e', f'.[{stack.extra},dev]')
        step.pip('install', *pinned, SHOW, *package)
    with Step('trying the imports', stack.venv) as step:
        step.run(stack.python, '-I', '-c', f'import {MODULES}')
    shutil.rmtree(str(stack.temporary))
    stack.stamp.write_text(fingerprint(stack))
    print(f'mmsparse is installed in {stack.folder}; make help tells what comes next')


def make_venv(stack: Stack, step: Step) -> None:
    """Make the environment, or make it usable again after an interruption."""
    if not venv_is_sound(stack):
        base = Path(sys.executable).resolve()  # Not .venv's own, which goes away.
        shutil.rmtree(str(stack.venv), ignore_errors=True)
        stack.venv.mkdir()
        step.run(base, '-m', 'venv', stack.venv)
    stack.stamp.unlink(missing_ok=True)
    shutil.rmtree(str(stack.temporary), ignore_errors=True)
    stack.temporary.mkdir()
    # pip writes INSTALLER last. A package without it may lack files, and pip would yet
    # take it for installed.
    for metadata in stack.venv.glob('lib/*/site-packages/*.dist-info'):
        if not (metadata / 'INSTALLER').exists():
            shutil.rmtree(str(metadata))


def venv_is_sound(stack: Stack) -> bool:
    """Whether .venv has this Python and a pip, and was made in this very folder."""
    probe = 'import sys, pip; print(*sys.version_info[:2])'
    try:
        version = subprocess.check_output(
            [str(stack.python), '-c', probe], stderr=subprocess.DEVNULL
        )
        moved = str(stack.venv) not in (stack.venv / 'bin' / 'pip').read_text()
    except (OSError, subprocess.CalledProcessError):
        return False
    return tuple(map(int, version.split())) == sys.version_info[:2] and not moved


def mmcv_wheel(stack: Stack, step: Step) -> Path:
    """Find the compiled mmcv for this torch, Python and machine, or compile it."""
    # torch may print warnings beside the answer.
    answer = re.search(r'^GPU: (.+)$', step.run(stack.python, '-c', PROBE_CUDA), re.M)
    architectures = answer.group(1) if answer else ''
    if architectures == 'without nvcc':
        print(f'{clear_line()}{NO_NVCC}')
        architectures = ''
    kind = 'cuda' + architectures.replace(';', '+') if architectures else 'cpu'
    store = WHEELS / wheel_key(stack, kind)
    if not any(store.glob('*.whl')):
        store.mkdir(parents=True, exist_ok=True)
        compile_mmcv(stack, step, store, architectures)
    return next(store.glob('*.whl'))


def wheel_key(stack: Stack, kind: str) -> str:
    """Name of the folder of wheels for this torch, Python and machine."""
    python = 'cp{}{}'.format(*sys.version_info[:2])
    platform = sysconfig.get_platform().replace('-', '_')
    packages = f'{stack.mmcv}{stack.pin(stack.mmcv)}-torch{stack.pin("torch")}'
    return f'{packages}-{python}-{platform}-{kind}'


def compile_mmcv(stack: Stack, step: Step, store: Path, architectures: str) -> None:
    """Compile mmcv into a wheel and put it in a store, whole or not at all."""
    source = stack.venv / 'build' / store.name
    if not source.exists():
        unpack_mmcv(stack, step, source)
    if architectures:
        device = {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': architectures}
    else:
        device = {'FORCE_CUDA': '0', 'CUDA_VISIBLE_DEVICES': ''}
    step.pip(
        *('wheel', '-v', '--no-deps', '--no-build-isolation'),
        *('-w', stack.temporary, source),
        MMCV_WITH_OPS='1',
        MAX_JOBS=os.environ.get('MAX_JOBS', str(count_jobs())),
        CFLAGS='-g0 -O1',
        **device,
    )
    wheel = next(stack.temporary.glob('*mmcv-*.whl'))
    partial = store / f'partial-{os.getpid()}'
    shutil.copyfile(str(wheel), str(partial))
    partial.replace(store / wheel.name)
    shutil.rmtree(str(source))


def unpack_mmcv(stack: Stack, step: Step, source: Path) -> None:
    """Put mmcv's source where the next run finds what this one compiled."""
    wanted = f'{stack.mmcv}=={stack.pin(stack.mmcv)}'
    options = ('--no-deps', '--no-build-isolation', f'--no-binary={stack.mmcv}')
    step.pip('download', *options, '-d', stack.temporary, wanted)
    archive = next(stack.temporary.glob('*mmcv-*.tar.gz'))
    shutil.unpack_archive(str(archive), str(stack.temporary))
    source.parent.mkdir(exist_ok=True)
    archive.with_name(archive.name[: -len('.tar.gz')]).rename(source)


def count_jobs() -> int:
    """Number of files to compile at a time, by cores and memory."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB))


if __name__ == '__main__':
    sys.exit(main())
