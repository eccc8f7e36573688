"""Check what an installation needs of the machine before it starts."""

import os
import shutil
import sysconfig
from ctypes import CDLL
from pathlib import Path

from install.stack import Stack
from install.step import stop

GIB = 2**30
VENV_SIZE = 5.7 * GIB  # measured with torch 2.12.1, as is the next
WHEEL_SHARE = 0.55  # size of a wheel relative to the files in it


def check_machine(stack: Stack) -> None:
    """Stop if a compiler, a library or disk space is missing."""
    check_compiler(stack)
    for library, *packages in (
        ('libGL.so.1', 'libgl1', 'mesa-libGL'),
        ('libglib-2.0.so.0', 'libglib2.0-0', 'glib2'),
    ):
        require(can_load(library), f'OpenCV needs {library}', *packages)
    check_disk(stack)


def check_compiler(stack: Stack) -> None:
    """Stop if mmcv has to be compiled and something for that is missing."""
    if stack.is_compiled():
        return
    compiler = os.environ.get('CXX', 'c++').split()[0]
    header = Path(sysconfig.get_path('include'), 'Python.h')
    require(shutil.which(compiler), f'mmcv needs {compiler}', 'g++', 'gcc-c++')
    packages = ('python3-dev', 'python3-devel')
    require(header.exists(), f'mmcv needs {header}', *packages)


def require(found: object, need: str, debian: str, fedora: str) -> None:
    if not found:
        packages = f'{debian} (Debian, Ubuntu) or {fedora} (RHEL, Fedora)'
        stop(f'{need}: install the package {packages}')


def can_load(library: str) -> bool:
    try:
        return bool(CDLL(library))
    except OSError:
        return False


def check_disk(stack: Stack) -> None:
    """Stop if the packages do not fit on the disk."""
    present = sum(path.lstat().st_blocks * 512 for path in stack.venv.rglob('*'))
    # pip's cache has a second copy of every wheel.
    stack.wheels.mkdir(parents=True, exist_ok=True)
    copies = 2 if stack.wheels.stat().st_dev == stack.root.stat().st_dev else 1
    needed = (VENV_SIZE - present) * (1 + WHEEL_SHARE * copies)
    free = shutil.disk_usage(stack.root).free
    if free < needed:
        sizes = f'{needed / GIB:.1f} GiB are needed and {free / GIB:.1f} GiB are free'
        stop(f'the disk of {stack.root} is too full: {sizes}')
