"""Make .venv and install mmsparse with its hosts: what `make install` runs.

Run it with the Python that the environment shall have, 3.10 to 3.12. A second run finds
everything done; an interrupted one is finished by the next: pip passes over what is
there, and ninja goes on compiling mmcv at the file where it stopped. The compiled mmcv
is kept in ~/.cache/mmsparse/wheels for the next clone.
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

from install_step import InstallError, Step, clear_line

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / 'constraints.txt'
VENV = ROOT / '.venv'
PYTHON = VENV / 'bin' / 'python'
STAMP = VENV / '.mmsparse-installed'
TEMPORARY = VENV / 'tmp'
CACHE = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
WHEELS = CACHE / 'mmsparse' / 'wheels'

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
EXTRAS = 'openmmlab,dev'
PINNED = ('-c', 'constraints.txt')
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


def main() -> int:
    """Install what is not installed yet; return the exit status."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        check_python(sys.version_info[:2])
        if not is_installed():
            wait_for_others()
        if is_installed():
            print('.venv is ready')
        else:
            check_compiler()
            check_libraries()
            check_disk()
            install()
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


def check_compiler() -> None:
    """Refuse to start if mmcv has to be compiled and cannot be."""
    if any(WHEELS.glob(f'{wheel_key("*")}/*.whl')):
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


def check_disk() -> None:
    """Refuse to start if the packages do not fit the disk."""
    present = sum(path.lstat().st_blocks * 512 for path in VENV.rglob('*'))
    copies = 2 if device_of(CACHE) == device_of(VENV) else 1  # pip's cache has one.
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


def is_installed() -> bool:
    """Whether the last installation was completed and would be the same today."""
    return PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == fingerprint()


def fingerprint() -> str:
    """Hash of all that decides what gets installed."""
    pyproject = (ROOT / 'pyproject.toml').read_text()
    build_system = pyproject.split('[build-system]')[1].split('\n[')[0]
    files = (ROOT / 'setup.py', CONSTRAINTS, Path(__file__))
    parts = [str(ROOT), str(sys.version_info[:2]), build_system]
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


def install() -> None:
    """Go through the steps; each passes quickly over what is done."""
    with Step('virtual environment', VENV) as step:
        make_venv(step)
    with Step('pip, setuptools, wheel, ninja', VENV) as step:
        step.pip('install', *PINNED, 'pip', 'setuptools', 'wheel', 'ninja')
    with Step('torch and torchvision', VENV) as step:
        step.pip('install', *PINNED, SHOW, 'torch', 'torchvision')
    with Step('mmcv with its operators', VENV) as step:
        step.pip('install', '--no-deps', '--force-reinstall', mmcv_wheel(step))
    with Step('hosts, tools and mmsparse', VENV) as step:
        package = ('--no-build-isolation', '-e', f'.[{EXTRAS}]')
        step.pip('install', *PINNED, SHOW, *package)
    with Step('trying the imports', VENV) as step:
        step.run(PYTHON, '-I', '-c', f'import {MODULES}')
    shutil.rmtree(str(TEMPORARY))
    STAMP.write_text(fingerprint())
    print('mmsparse is installed in .venv; make quickstart comes next')


def make_venv(step: Step) -> None:
    """Make the environment, or make it usable again after an interruption."""
    if not venv_is_sound():
        base = Path(sys.executable).resolve()  # Not .venv's own, which goes away.
        shutil.rmtree(str(VENV), ignore_errors=True)
        VENV.mkdir()
        step.run(base, '-m', 'venv', VENV)
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(str(TEMPORARY), ignore_errors=True)
    TEMPORARY.mkdir()
    # pip writes INSTALLER last. A package without it may lack files, and pip would yet
    # take it for installed.
    for metadata in VENV.glob('lib/*/site-packages/*.dist-info'):
        if not (metadata / 'INSTALLER').exists():
            shutil.rmtree(str(metadata))


def venv_is_sound() -> bool:
    """Whether .venv has this Python and a pip, and was made in this very folder."""
    probe = 'import sys, pip; print(*sys.version_info[:2])'
    try:
        version = subprocess.check_output(
            [str(PYTHON), '-c', probe], stderr=subprocess.DEVNULL
        )
        moved = str(VENV) not in (VENV / 'bin' / 'pip').read_text()
    except (OSError, subprocess.CalledProcessError):
        return False
    return tuple(map(int, version.split())) == sys.version_info[:2] and not moved


def mmcv_wheel(step: Step) -> Path:
    """Find the compiled mmcv for this torch, Python and machine, or compile it."""
    # torch may print warnings beside the answer.
    answer = re.search(r'^GPU: (.+)$', step.run(PYTHON, '-c', PROBE_CUDA), re.M)
    architectures = answer.group(1) if answer else ''
    if architectures == 'without nvcc':
        print(f'{clear_line()}{NO_NVCC}')
        architectures = ''
    kind = 'cuda' + architectures.replace(';', '+') if architectures else 'cpu'
    store = WHEELS / wheel_key(kind)
    if not any(store.glob('*.whl')):
        store.mkdir(parents=True, exist_ok=True)
        compile_mmcv(step, store, architectures)
    return next(store.glob('*.whl'))


def wheel_key(kind: str) -> str:
    """Name of the folder of wheels for this torch, Python and machine."""
    python = 'cp{}{}'.format(*sys.version_info[:2])
    platform = sysconfig.get_platform().replace('-', '_')
    return f'mmcv{pin("mmcv")}-torch{pin("torch")}-{python}-{platform}-{kind}'


def pin(package: str) -> str:
    """Version at which the constraints hold a package."""
    return re.search(rf'^{package}==(\S+)', CONSTRAINTS.read_text(), re.M).group(1)


def compile_mmcv(step: Step, store: Path, architectures: str) -> None:
    """Compile mmcv into a wheel and put it in a store, whole or not at all."""
    source = VENV / 'build' / store.name
    if not source.exists():
        unpack_mmcv(step, source)
    if architectures:
        device = {'FORCE_CUDA': '1', 'TORCH_CUDA_ARCH_LIST': architectures}
    else:
        device = {'FORCE_CUDA': '0', 'CUDA_VISIBLE_DEVICES': ''}
    step.pip(
        *('wheel', '-v', '--no-deps', '--no-build-isolation', '-w', TEMPORARY, source),
        MMCV_WITH_OPS='1',
        MAX_JOBS=os.environ.get('MAX_JOBS', str(count_jobs())),
        CFLAGS='-g0 -O1',
        **device,
    )
    wheel = next(TEMPORARY.glob('mmcv-*.whl'))
    partial = store / f'partial-{os.getpid()}'
    shutil.copyfile(str(wheel), str(partial))
    partial.replace(store / wheel.name)
    shutil.rmtree(str(source))


def unpack_mmcv(step: Step, source: Path) -> None:
    """Put mmcv's source where the next run finds what this one compiled."""
    options = ('--no-deps', '--no-build-isolation', '--no-binary=mmcv')
    step.pip('download', *options, '-d', TEMPORARY, f'mmcv=={pin("mmcv")}')
    shutil.unpack_archive(str(next(TEMPORARY.glob('mmcv-*.tar.gz'))), str(TEMPORARY))
    source.parent.mkdir(exist_ok=True)
    (TEMPORARY / f'mmcv-{pin("mmcv")}').rename(source)


def count_jobs() -> int:
    """Number of files to compile at a time, by cores and memory."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB))


if __name__ == '__main__':
    sys.exit(main())
