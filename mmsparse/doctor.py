"""Print installed versions and their conflicts, with the commands to fix them.

Exits with 1 on a conflict, not on a note. Run it again after a fix: of the imports that
fail, only the first is reported.
"""

import argparse
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import Version

from mmsparse._paths import ROOT
from mmsparse.mmcv_ext import lacks_operators, substitute_extension

ONEDL = {  # names in the OpenMMLab stack to those in the OneDL stack
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
    'openmim': 'onedl-mim',
}
LITE = 'mmcv-lite'  # mmcv without operators
PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'setuptools', *ONEDL, LITE),
    *(*ONEDL.values(), 'mmsparse', 'transformers'),
)
IMPORTS = {  # modules to try, and the package of each
    'torch': 'torch',
    'torchvision': 'torchvision',
    'cv2': 'mmcv',
    'pkg_resources': 'mmengine',
    'mmcv.ops': 'mmcv',
    'mmdet': 'mmdet',
    'mmseg': 'mmsegmentation',
    'mmpretrain.models': 'mmpretrain',
    'mim': 'openmim',
}
NOT_COMPILED = 'not compiled'
BACKBONES = 'mmsparse[backbones]'
COMPILED = ('mmcv', ONEDL['mmcv'])  # from their sources
COMPILE = (
    'MMCV_WITH_OPS=1 pip install --force-reinstall --no-cache-dir --no-deps '
    "--no-build-isolation '{}'"
)


@dataclass(frozen=True)
class Setup:
    """An environment."""

    versions: dict[str, str]  # of the installed packages
    failure: tuple[str, str] | None = None  # first module that failed, and its error
    operators: str = ''  # devices of mmcv's, or NOT_COMPILED; empty if unknown
    gpu: str = ''  # empty without one

    @property
    def stacks(self) -> list[str]:
        """Extras of setup.py whose packages are installed."""
        names = {'openmmlab': {*ONEDL}, 'onedl': {*ONEDL.values()}}
        return [stack for stack in names if names[stack] & self.versions.keys()]

    @property
    def main_stack(self) -> str:
        """The extra of the stack with the most packages; ``openmmlab`` without any."""
        onedl = len({*ONEDL.values()} & self.versions.keys())
        return 'onedl' if onedl > len({*ONEDL} & self.versions.keys()) else 'openmmlab'

    @property
    def mixed(self) -> bool:
        """Whether packages of more than one stack are installed."""
        return len(self.stacks) > 1

    def package(self, name: str) -> str:
        """Return the name that an OpenMMLab package has in the installed stack."""
        if name == 'mmcv' and name not in self.versions and LITE in self.versions:
            return LITE
        return ONEDL.get(name, name) if self.stacks == ['onedl'] else name


def main() -> int:
    """Print versions and conflicts; return the exit status."""
    argparse.ArgumentParser('mmsparse doctor', description=__doc__).parse_args()
    setup = examine()
    required = requirements()
    conflicts = list(find_conflicts(setup, required))
    print('\n'.join(describe(setup)), end='\n\n')
    for problem, command in conflicts:
        print(f'conflict: {problem}\n    {command}')
    if not conflicts:
        for note, command in find_notes(setup, required):
            print(f'note: {note}\n    {command}')
        print('no conflicts found')
    return 1 if conflicts else 0


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    found = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def requirements() -> list[Requirement]:
    """Return what mmsparse and its extras require; nothing if it is not installed."""
    try:
        return [Requirement(line) for line in requires('mmsparse') or ()]
    except PackageNotFoundError:
        return []


def examine() -> Setup:
    """Import the installed packages, up to the first failure."""
    substitute_extension()  # as mmsparse does before it imports them
    setup = Setup(installed_versions())
    for module, package in IMPORTS.items():
        if setup.package(package) in setup.versions:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore')
                    import_module(module)
            except Exception as error:  # A broken package may raise anything.
                text = f'{type(error).__name__}: {error}'.splitlines()[0]
                return replace(setup, failure=(module, text))
    operators = gpu = ''
    if 'mmcv.ops' in sys.modules:
        cuda = sys.modules['mmcv.ops'].get_compiling_cuda_version()
        operators = 'CPU' if cuda == 'not available' else f'CPU and CUDA {cuda}'
        operators = NOT_COMPILED if lacks_operators() else operators
    if 'torch' in sys.modules and sys.modules['torch'].cuda.is_available():
        gpu = sys.modules['torch'].cuda.get_device_name()
    return replace(setup, operators=operators, gpu=gpu)


def find_conflicts(
    setup: Setup, required: Sequence[Requirement] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each conflict and the command that fixes it, in the order to fix them."""
    versions, mmcv = setup.versions, setup.package('mmcv')
    compile_mmcv = _compile(setup, required)
    if 'torch' not in versions:
        yield 'torch is not installed', 'pip install torch'
    yield from _mixed_stacks(setup, compile_mmcv)
    if not versions.keys() & {'mmengine', 'onedl-mmengine'} and not setup.mixed:
        name = setup.package('mmengine')
        wanted = _within_bounds(name, required) if setup.stacks else BACKBONES
        yield f'{name} is not installed', f"pip install '{wanted}'"
    for x in required:
        name = mmcv if x.name == 'mmcv' else x.name
        extras = ({'extra': extra} for extra in ('', *setup.stacks))
        if name in versions and (not x.marker or any(map(x.marker.evaluate, extras))):
            found, fix = versions[name], f"pip install '{name}{x.specifier}'"
            if not x.specifier.contains(found, prereleases=True):
                problem = f'{name} {found} is outside {x.specifier}'
                yield problem, compile_mmcv if name in COMPILED else fix
    torch, numpy = (Version(versions.get(x, '0')) for x in ('torch', 'numpy'))
    if Version('0') < torch < Version('2.3') and numpy >= Version('2'):
        yield (
            f'torch {torch} is compiled for numpy 1, and fails to convert arrays of '
            f'numpy {numpy}',
            "pip install 'numpy<2'",
        )
    if setup.failure:
        module, error = setup.failure
        yield f'import {module}: {error}', _fix_import(setup, compile_mmcv)
    if setup.gpu and setup.operators == 'CPU':
        yield (
            "mmcv's operators are compiled for the CPU only, so of the detectors only "
            'DETRs run on the GPU; compiling them needs nvcc (CUDA toolkit)',
            f'FORCE_CUDA=1 {COMPILE.format(f"{mmcv}=={versions[mmcv]}")}',
        )


def find_notes(
    setup: Setup, required: Sequence[Requirement] = ()
) -> Iterator[tuple[str, str]]:
    """Yield what works with limits, and the command that lifts them."""
    if setup.operators == NOT_COMPILED:
        replaced = f'pip uninstall --yes {LITE} && ' if LITE in setup.versions else ''
        yield (
            "mmcv's operators are not compiled; all configs of mmsparse run without "
            'them, other models may need them, deformable convolution for example',
            replaced + _compile(setup, required),
        )


def _mixed_stacks(setup: Setup, compile_mmcv: str) -> Iterator[tuple[str, str]]:
    versions = setup.versions
    if setup.mixed:
        names = ' '.join(x for pair in ONEDL.items() for x in pair if x in versions)
        yield (
            f'two stacks install the same modules over each other: {names}',
            f'pip uninstall --yes {names} && {compile_mmcv} && '
            f"pip install 'mmsparse[{setup.main_stack}]'",
        )
    for name in COMPILED:
        if {name, LITE} <= versions.keys():
            yield (
                f'{name} and {LITE} install the same module over each other',
                f'pip uninstall --yes {name} {LITE} && {compile_mmcv}',
            )


def _compile(setup: Setup, required: Sequence[Requirement]) -> str:
    """Return the command that compiles mmcv's operators."""
    mmcv = ONEDL['mmcv'] if setup.main_stack == 'onedl' else 'mmcv'
    return COMPILE.format(_within_bounds(mmcv, required))


def _within_bounds(name: str, required: Sequence[Requirement]) -> str:
    """Return a package with the versions that mmsparse allows, for pip."""
    return name + str(next((x.specifier for x in required if x.name == name), ''))


def _fix_import(setup: Setup, compile_mmcv: str) -> str:
    module, error = setup.failure
    if re.search(r"undefined symbol|named 'mmcv", error):
        return compile_mmcv
    if "named 'pkg_resources'" in error:
        return "pip install 'setuptools<81'"
    if "named 'pip'" in error:  # which openmim imports, and uv does not install
        return 'python -m ensurepip'
    if 'numpy.core.multiarray failed' in error:  # OpenCV compiled for numpy 1
        return "pip install 'numpy<2'"
    if re.search(r'libGL\.so|libglib-2', error):
        return 'apt-get install libgl1 libglib2.0-0'
    if 'torchvision::nms' in error:
        return 'pip install --force-reinstall torch torchvision'
    if 'NoneType takes no arguments' in error and 'transformers' in setup.versions:
        return "pip install 'transformers<4.50'"  # whose names mmpretrain 1.2 uses
    if "named '" in error and setup.stacks:
        extra = 'lite' if setup.package('mmcv') == LITE else setup.stacks[0]
        return f"pip install 'mmsparse[{extra}]'"
    return f'pip install --force-reinstall {setup.package(IMPORTS[module])}'


def describe(setup: Setup) -> Iterator[str]:
    """Yield a line for every version and property of an environment."""
    stack = map(setup.package, ONEDL)
    rows = {
        'Python': platform.python_version(),
        **setup.versions,
        **{name: 'not installed' for name in stack if name not in setup.versions},
        'mmcv.ops': setup.operators or 'not imported',
        'GPU': setup.gpu or 'none that torch can use',
        'configs': str(ROOT / 'configs'),
    }
    width = max(map(len, rows))
    yield from (f'{name:{width}}  {value}' for name, value in rows.items())


if __name__ == '__main__':
    sys.exit(main())
