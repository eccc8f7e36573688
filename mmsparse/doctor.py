"""Tell what is installed, what does not fit together, and the command that mends it.

Ends with status 1 if something does not fit. After a command that mends, run it again:
of imports that fail only the first is told.
"""

import argparse
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.version import Version

import mmsparse

# The names of each host on the package index: OpenMMLab's and OneDL's.
HOSTS = {
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
    'openmim': 'onedl-mim',
}
PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'setuptools', *HOSTS, 'mmcv-lite'),
    *(*HOSTS.values(), 'mmsparse'),
)
# What to import, and for which packages; the first that fails is the likely reason for
# those below it.
IMPORTS = {
    'torch': ('torch',),
    'torchvision': ('torchvision',),
    'cv2': ('mmcv', 'onedl-mmcv'),
    'pkg_resources': ('mmengine', 'openmim'),
    'mmcv.ops': ('mmcv', 'onedl-mmcv'),
    'mmdet': ('mmdet', 'onedl-mmdetection'),
    'mmseg': ('mmsegmentation', 'onedl-mmsegmentation'),
    'mmpretrain': ('mmpretrain', 'onedl-mmpretrain'),
    'mim': ('openmim', 'onedl-mim'),
}
COMPILE_MMCV = (
    'MMCV_WITH_OPS=1 pip install --force-reinstall --no-cache-dir --no-deps '
    "--no-build-isolation '{}'"
)
REMEDIES = (
    (r'libGL\.so|libglib-2', 'apt-get install libgl1 libglib2.0-0'),
    (r'torchvision::nms', 'pip install --force-reinstall torch torchvision'),
    (r"named 'pkg_resources'", "pip install 'setuptools>=70,<81'"),
    (r"named '(\w+)", 'pip install {}'),
)
# Modules that the hosts import, whose packages have other names.
PACKAGE_OF = {
    'cv2': 'opencv-python',
    'mmseg': 'mmsegmentation',
    'PIL': 'pillow',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
}


class Conflict(NamedTuple):
    """What does not fit together.

    Args:
        problem: One line.
        command: One line for the shell that mends it.
    """

    problem: str
    command: str


@dataclass(frozen=True)
class Setup:
    """What is installed.

    Args:
        versions: By the packages' names on the index.
        failure: The first import that failed: its module, and what it raised.
        operators: For what mmcv's operators are compiled.
        gpu: On which torch computes; empty without one.
    """

    versions: dict[str, str]
    failure: tuple[str, str] | None = None
    operators: str = ''
    gpu: str = ''


def main() -> int:
    """Print what is installed and what does not fit.

    Returns:
        Exit status.
    """
    parser = argparse.ArgumentParser(
        'python -m mmsparse.doctor', description=__doc__.partition('\n\n')[0]
    )
    parser.parse_args()
    setup = examine()
    conflicts = find_conflicts(setup, requirements())
    print('\n'.join(describe(setup)), end='\n\n')
    for conflict in conflicts:
        print(f'conflict: {conflict.problem}\n    {conflict.command}')
    if not conflicts:
        print('no conflicts found')
    return 1 if conflicts else 0


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Look up the versions of packages.

    Args:
        packages: Their names on the index.

    Returns:
        Versions of those that are installed.
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def requirements() -> list[Requirement]:
    """What mmsparse and its extras require; nothing where it is not installed."""
    try:
        return [Requirement(line) for line in requires('mmsparse') or ()]
    except PackageNotFoundError:
        return []


def examine() -> Setup:
    """Look at this environment; imports everything."""
    versions = installed_versions()
    failure = first_failure(versions)
    if failure is None and 'torch' in versions:
        return Setup(versions, None, _operators(versions), _gpu())
    return Setup(versions, failure)


def first_failure(versions: dict[str, str]) -> tuple[str, str] | None:
    """Import what is installed until something fails.

    Args:
        versions: Of the installed packages.

    Returns:
        The module that failed and what it raised, or None.
    """
    for module, packages in IMPORTS.items():
        if any(package in versions for package in packages):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')
                    import_module(module)
            except Exception as error:  # A broken package may raise anything.
                return module, f'{type(error).__name__}: {error}'.splitlines()[0]
    return None


def find_conflicts(
    setup: Setup, required: Sequence[Requirement] = ()
) -> list[Conflict]:
    """Tell what does not fit together.

    Args:
        setup: What is installed.
        required: What mmsparse requires; an extra counts if its hosts are installed.

    Returns:
        What to mend, in this order.
    """
    return [
        *_missing(setup.versions, required),
        *_mixed_stacks(setup.versions, required),
        *_mmcv_lite(setup.versions, required),
        *_outside_range(setup.versions, required),
        *_numpy_beside_old_torch(setup.versions),
        *_failed_import(setup, required),
        *_operators_without_gpu(setup),
    ]


def _missing(
    versions: dict[str, str], required: Sequence[Requirement]
) -> Iterator[Conflict]:
    for requirement in _that_apply(required, ('',)):
        if requirement.name in PACKAGES and requirement.name not in versions:
            yield Conflict(
                f'{requirement.name} is not installed', f"pip install '{requirement}'"
            )
    if not {'mmengine', 'onedl-mmengine'} & versions.keys():
        mmengine = _in_stack('mmengine', versions)
        yield Conflict(
            f'{mmengine} is not installed, which all models need; with this command '
            'those of create_backbone work, and docs/installation.md tells how to '
            'install the hosts',
            f'pip install {mmengine}'
            if _stacks(versions)
            else "pip install 'mmsparse[backbones]'",
        )


def _mixed_stacks(
    versions: dict[str, str], required: Sequence[Requirement]
) -> Iterator[Conflict]:
    twice = [name for name in HOSTS if {name, HOSTS[name]} <= versions.keys()]
    if twice:
        hosts = [x for pair in HOSTS.items() for x in pair if x in versions]
        pairs = ', '.join(f'{name} and {HOSTS[name]}' for name in twice)
        yield Conflict(
            f'{pairs} are the same modules and overwrite each other',
            f'pip uninstall --yes {" ".join(hosts)} && '
            f"{_compile('mmcv', required)} && pip install 'mmsparse[openmmlab]'",
        )


def _mmcv_lite(
    versions: dict[str, str], required: Sequence[Requirement]
) -> Iterator[Conflict]:
    if 'mmcv-lite' in versions:
        mmcv = _in_stack('mmcv', versions)
        yield Conflict(
            'mmcv-lite has no operators, and overwrites the mmcv that has them',
            f'pip uninstall --yes mmcv-lite {mmcv}; {_compile(mmcv, required)}',
        )


def _outside_range(
    versions: dict[str, str], required: Sequence[Requirement]
) -> Iterator[Conflict]:
    for requirement in _that_apply(required, ('', *_stacks(versions))):
        name, allowed = requirement.name, requirement.specifier
        found = versions.get(name)
        if found and not allowed.contains(found, prereleases=True):
            yield Conflict(
                f'{name} {found} is outside {allowed}, which mmsparse or a host needs',
                _compile(name, required)
                if name.endswith('mmcv')
                else f"pip install '{name}{allowed}'",
            )


def _that_apply(
    required: Sequence[Requirement], extras: Sequence[str]
) -> Iterator[Requirement]:
    for requirement in required:
        marker = requirement.marker
        if not marker or any(marker.evaluate({'extra': extra}) for extra in extras):
            yield requirement


def _compile(mmcv: str, required: Sequence[Requirement]) -> str:
    allowed = [str(x.specifier) for x in required if x.name == mmcv]
    return COMPILE_MMCV.format(''.join([mmcv, *allowed[:1]]))


def _numpy_beside_old_torch(versions: dict[str, str]) -> Iterator[Conflict]:
    numpy, torch = (Version(versions.get(x, '0')) for x in ('numpy', 'torch'))
    if numpy.major >= 2 and Version('1') < torch < Version('2.3'):
        yield Conflict(
            f'torch {torch} cannot exchange arrays with numpy {numpy}; '
            'torch 2.3 was the first for numpy 2',
            "pip install 'numpy<2' 'opencv-python<4.12'",
        )


def _failed_import(setup: Setup, required: Sequence[Requirement]) -> Iterator[Conflict]:
    if setup.failure is None:
        return
    module, error = setup.failure
    packages = [x for x in IMPORTS[module] if x in setup.versions]
    command = f'pip install --force-reinstall {packages[-1]}'
    if 'mmcv._ext' in error or 'undefined symbol' in error:
        error = f'mmcv has no operators compiled for this torch ({error})'
        command = COMPILE_MMCV.format(f'{packages[-1]}=={setup.versions[packages[-1]]}')
    elif "named 'mmcv" in error:
        command = _compile(_in_stack('mmcv', setup.versions), required)
    else:
        for pattern, remedy in REMEDIES:
            if found := re.search(pattern, error):
                names = (PACKAGE_OF.get(x, x) for x in found.groups())
                command = remedy.format(*(_in_stack(x, setup.versions) for x in names))
                break
    yield Conflict(f'import {module}: {error}', command)


def _operators_without_gpu(setup: Setup) -> Iterator[Conflict]:
    if setup.gpu and setup.operators == 'CPU':
        mmcv = next(x for x in ('mmcv', 'onedl-mmcv') if x in setup.versions)
        wanted = f'{mmcv}=={setup.versions[mmcv]}'
        yield Conflict(
            "mmcv's operators are compiled for the CPU only: detectors do not run on "
            'the GPU; nvcc of the CUDA toolkit is needed to compile them',
            f'FORCE_CUDA=1 {COMPILE_MMCV.format(wanted)}',
        )


def describe(setup: Setup) -> Iterator[str]:
    """Write what is installed.

    Args:
        setup: What is installed.

    Yields:
        Lines.
    """
    folder = Path(mmsparse.__file__).resolve().parent
    configs = folder / '.mim' / 'configs'
    if not configs.is_dir():
        configs = folder.parent / 'configs'
    hosts = [_in_stack(name, setup.versions) for name in HOSTS]
    rows = {
        'Python': platform.python_version(),
        **setup.versions,
        **{name: 'not installed' for name in hosts if name not in setup.versions},
        'stack': ' and '.join(_stacks(setup.versions)) or 'no hosts',
        'mmcv.ops': setup.operators or 'not looked at',
        'GPU': setup.gpu or 'none that torch can use',
        'driver': _driver() or 'none of NVIDIA',
        'configs': str(configs.resolve()) if configs.is_dir() else 'none',
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        yield f'{name:{width}}  {value}'


def _stacks(versions: dict[str, str]) -> list[str]:
    """The extras of setup.py whose hosts are installed."""
    names = {'openmmlab': set(HOSTS), 'onedl': set(HOSTS.values())}
    return [stack for stack in names if names[stack] & versions.keys()]


def _in_stack(name: str, versions: dict[str, str]) -> str:
    """A host's name in the stack that is installed; any other name as it is."""
    return HOSTS.get(name, name) if _stacks(versions) == ['onedl'] else name


def _operators(versions: dict[str, str]) -> str:
    if not any(package in versions for package in IMPORTS['mmcv.ops']):
        return 'no mmcv'
    cuda = import_module('mmcv.ops').get_compiling_cuda_version()
    return 'CPU' if cuda == 'not available' else f'CPU and CUDA {cuda}'


def _gpu() -> str:
    cuda = import_module('torch').cuda
    if not cuda.is_available():
        return ''
    capability = '.'.join(map(str, cuda.get_device_capability()))
    return f'{cuda.get_device_name()}, compute capability {capability}'


def _driver() -> str:
    file = Path('/proc/driver/nvidia/version')
    found = file.is_file() and re.search(r' (\d+\.\d[\d.]*) ', file.read_text())
    return found[1] if found else ''


if __name__ == '__main__':
    sys.exit(main())
