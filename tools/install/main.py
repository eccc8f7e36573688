"""The command `make install`: skip, wait or install, and report errors in one line."""

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from install.frameworks import install_frameworks
from install.mmcv import mmcv_wheel
from install.preflight import check_compiler, check_machine
from install.rows import ROWS
from install.stack import NAMES, STACKS, Stack
from install.step import SHOW, Step, reason_of, stop

BUILD_TOOLS = ('pip', 'setuptools', 'wheel', 'ninja')  # older pips build otherwise
MODULES = 'torchvision, mmcv.ops, mmdet, mmpretrain, mmseg, mim, mmsparse'


def main(description: str = '') -> None:
    """Install what is missing, or exit with the reason for which that failed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--stack', choices=NAMES, default='openmmlab')
    parser.add_argument(
        '--mmcv',
        action='store_true',
        help='only compile mmcv, and install it next to the torch of this Python',
    )
    args = parser.parse_args()
    try:
        if args.mmcv:
            install_mmcv(args.stack)
        else:
            complete(Stack(args.stack))
    except OSError as error:
        stop(reason_of(f'error: {error}'))
    except KeyboardInterrupt:
        stop('interrupted; run it again to resume')


def complete(stack: Stack) -> None:
    """Install what is missing in the stack's own environment."""
    check_python(stack.name)
    if not is_installed(stack):
        lock(stack.root)
    if not is_installed(stack):
        if stack.base is None:
            check_machine(stack)
            install(stack)
        else:
            install_frameworks(stack)
        stack.stamp.write_text(fingerprint(stack))
    print(f'{stack.venv.name} is ready: source {stack.venv.name}/bin/activate')


def install_mmcv(name: str) -> None:
    """Compile mmcv for the torch of this Python, and install it there."""
    if name not in STACKS:
        stop(
            f'--mmcv takes --stack {", ".join(STACKS[:-1])} or {STACKS[-1]}; got {name}'
        )
    try:
        torch = version('torch')
    except PackageNotFoundError:
        stop(f'{sys.prefix} has no torch, for which mmcv is compiled: install it first')
    stack = Stack(name, venv=Path(sys.prefix), versions={'torch': torch})
    check_compiler(stack)
    shutil.rmtree(stack.temporary, ignore_errors=True)
    stack.temporary.mkdir()
    with Step('mmcv with its operators', stack.venv) as step:
        step.pip('install', '-c', stack.pins[-1], *BUILD_TOOLS)
        step.pip('install', '--no-deps', '--force-reinstall', mmcv_wheel(stack, step))
        step.log.unlink()  # the environment is the user's
    shutil.rmtree(stack.temporary)


def check_python(name: str) -> None:
    """Stop if this is not the Python of a row that is no stack."""
    running = '{}.{}'.format(*sys.version_info)
    if name not in STACKS and name in ROWS and ROWS[name].python != running:
        python = ROWS[name].python
        stop(
            f'{name} is for Python {python}, and this is {running}: run '
            f'make install STACK={name} PYTHON=python{python}'
        )


def is_installed(stack: Stack) -> bool:
    """Return whether an installation was completed and would be the same today."""
    done = stack.python.exists() and stack.stamp.is_file()
    return done and stack.stamp.read_text() == fingerprint(stack)


def fingerprint(stack: Stack) -> str:
    """Return a hash of everything that decides what is installed."""
    pyproject = (stack.root / 'pyproject.toml').read_text()
    build_system = pyproject.split('[build-system]')[1].split('\n[')[0]
    sources = sorted(Path(__file__).parent.glob('*.py'))
    files = (stack.root / 'setup.py', *stack.pins, *sources)
    parts = [str(stack.venv), str(sys.version_info[:2]), build_system]
    parts += [file.read_text() for file in files]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()


def lock(root: Path) -> None:
    """Wait until no other installation runs in the project.

    The lock lasts until this process and those that it starts have ended, so that no
    installation runs next to the pip of a killed one.
    """
    folder = os.open(root, os.O_RDONLY)
    os.set_inheritable(folder, True)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print('waiting for another make install to end ...', flush=True)
        fcntl.flock(folder, fcntl.LOCK_EX)


def install(stack: Stack) -> None:
    """Run all steps; completed ones take seconds."""
    print(f'Python {platform.python_version()} at {sys.executable}')
    pinned = ('-c', stack.constraints)
    with Step('virtual environment', stack.venv) as step:
        create_venv(stack, step)
        if stack.versions:
            stack.constraints.write_text(stack.read_pins())
    with Step(', '.join(BUILD_TOOLS), stack.venv) as step:
        step.pip('install', *pinned, *BUILD_TOOLS)
    with Step('torch and torchvision', stack.venv) as step:
        step.pip('install', *pinned, SHOW, 'torch', 'torchvision')
    with Step('mmcv with its operators', stack.venv) as step:
        step.pip('install', '--no-deps', '--force-reinstall', mmcv_wheel(stack, step))
    with Step('mmsparse, mmdet, mmseg, mmpretrain and tools', stack.venv) as step:
        package = ('--no-build-isolation', '-e', f'.[{stack.extra},dev]')
        step.pip('install', *pinned, SHOW, *package)
    with Step('test of the imports', stack.venv) as step:
        step.run(stack.python, '-I', '-c', f'import {MODULES}')
    shutil.rmtree(stack.temporary)
    print('mmsparse is installed; make help lists the commands')


def create_venv(stack: Stack, step: Step) -> None:
    """Create the environment unless a usable one exists; clear interrupted work."""
    if not is_usable(stack):
        base = Path(sys.executable).resolve()  # not the one in .venv, which is removed
        shutil.rmtree(stack.venv, ignore_errors=True)
        stack.venv.mkdir()
        step.run(base, '-m', 'venv', stack.venv)
    stack.stamp.unlink(missing_ok=True)
    shutil.rmtree(stack.temporary, ignore_errors=True)
    stack.temporary.mkdir()
    # pip writes INSTALLER last: a package without it may lack files, though pip would
    # take it for installed.
    for metadata in stack.venv.glob('lib/*/site-packages/*.dist-info'):
        if not (metadata / 'INSTALLER').exists():
            shutil.rmtree(metadata)


def is_usable(stack: Stack) -> bool:
    """Return whether the environment has this Python and pip, and was not moved."""
    version = subprocess.getoutput(f'"{stack.venv}/bin/pip" --version')
    folder = '{}/lib/python{}.{}/'.format(stack.venv, *sys.version_info[:2])
    return f' from {folder}' in version
