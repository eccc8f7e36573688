"""Check what an installation needs of the machine before it starts."""

import os
import shutil
import sysconfig
from ctypes import CDLL
from pathlib import Path

from install.stack import Stack
from install.step import InstallError

GIB = 2**30
VENV_SIZE = 5.7 * GIB  # measured with torch 2.12.1, as is the next
WHEEL_SHARE = 0.55  # size of a wheel relative to the files in it


def check_machine(stack: Stack) -> None:
    """Raise InstallError if a compiler, a library or disk space is missing."""
    check_compiler(stack)
    check_libraries()
    check_disk(stack)


def check_compiler(stack: Stack) -> None:
    """Raise InstallError if mmcv must be compiled and cannot be."""
    store = stack.wheels('*')
    if any(store.parent.glob(f'{store.name}/*.whl')):
        return
    compiler = os.environ.get('CXX', 'c++').split()[0]
    if not shutil.which(compiler):
        raise InstallError(
            f'mmcv must be compiled and there is no {compiler}: '
            'install the package g++ (Debian, Ubuntu) or gcc-c++ (RHEL, Fedora)'
        )
    header = Path(sysconfig.get_paths()['include']) / 'Python.h'
    if not header.exists():
        raise InstallError(
            f'mmcv must be compiled and there is no {header}: install the package '
            'python3-dev (Debian, Ubuntu) or python3-devel (RHEL, Fedora)'
        )


def check_libraries() -> None:
    """Raise InstallError if system libraries of OpenCV are missing."""
    for library in ('libGL.so.1', 'libglib-2.0.so.0'):
        try:
            CDLL(library)
        except OSError:
            raise InstallError(
                f'OpenCV needs {library}: install the packages libgl1 and libglib2.0-0 '
                '(Debian, Ubuntu) or mesa-libGL and glib2 (RHEL, Fedora)'
            ) from None


def check_disk(stack: Stack) -> None:
    """Raise InstallError if the packages do not fit on the disk."""
    present = sum(path.lstat().st_blocks * 512 for path in stack.venv.rglob('*'))
    # pip's cache has a second copy of every wheel.
    copies = 2 if _device(stack.cache) == _device(stack.venv) else 1
    needed = (VENV_SIZE - present) * (1 + WHEEL_SHARE * copies)
    free = shutil.disk_usage(stack.root).free
    if free < needed:
        raise InstallError(
            f'the disk of {stack.root} is too full: '
            f'{needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB are free'
        )


def _device(path: Path) -> int:
    """Return the file system of a path, which need not exist."""
    return next(p for p in (path, *path.parents) if p.exists()).stat().st_dev
