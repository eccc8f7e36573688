"""Print installed versions and their conflicts, with the commands to fix them.

Exits with 1 on a conflict. Run it again after a fix: of the imports that fail, only the
first is reported.
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

from mmsparse._paths import ROOT

ONEDL = {  # names in the OpenMMLab stack to those in the OneDL stack
    'mmengine': 'onedl-mmengine',
    'mmcv': 'onedl-mmcv',
    'mmdet': 'onedl-mmdetection',
    'mmsegmentation': 'onedl-mmsegmentation',
    'mmpretrain': 'onedl-mmpretrain',
    'openmim': 'onedl-mim',
}
PACKAGES = (
    *('torch', 'torchvision', 'numpy', 'setuptools', *ONEDL, 'mmcv-lite'),
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
COMPILE = (
    'MMCV_WITH_OPS=1 pip install --force-reinstall --no-cache-dir --no-deps '
    "--no-build-isolation '{}'"
)


@dataclass(frozen=True)
class Setup:
    """An environment."""

    versions: dict[str, str]  # of the installed packages
    failure: tuple[str, str] | None = None  # first module that failed, and its error
    operators: str = ''  # devices that mmcv's are compiled for; empty if unknown
    gpu: str = ''  # empty without one

    @property
    def stacks(self) -> list[str]:
        """Extras of setup.py whose packages are installed."""
        names = {'openmmlab': {*ONEDL}, 'onedl': {*ONEDL.values()}}
        return [stack for stack in names if names[stack] & self.versions.keys()]

    def package(self, name: str) -> str:
        """Return the name that an OpenMMLab package has in the installed stack."""
        return ONEDL.get(name, name) if self.stacks == ['onedl'] else name


def main() -> int:
    """Print versions and conflicts; return the exit status."""
    argparse.ArgumentParser('mmsparse doctor', description=__doc__).parse_args()
    setup = examine()
    conflicts = list(find_conflicts(setup, requirements()))
    print('\n'.join(describe(setup)), end='\n\n')
    for problem, command in conflicts:
        print(f'conflict: {problem}\n    {command}')
    if not conflicts:
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
    if 'torch' in sys.modules and sys.modules['torch'].cuda.is_available():
        gpu = sys.modules['torch'].cuda.get_device_name()
    return replace(setup, operators=operators, gpu=gpu)


def find_conflicts(
    setup: Setup, required: Sequence[Requirement] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each conflict and the command that fixes it, in the order to fix them."""
    versions, mmcv = setup.versions, setup.package('mmcv')
    allowed = next((x.specifier for x in required if x.name == mmcv), '')
    compile_mmcv = COMPILE.format(f'{mmcv}{allowed}')
    if 'torch' not in versions:
        yield 'torch is not installed', 'pip install torch'
    if not versions.keys() & {'mmengine', 'onedl-mmengine'}:
        mmengine = setup.package('mmengine')
        wanted = mmengine if setup.stacks else "'mmsparse[backbones]'"
        yield f'{mmengine} is not installed', f'pip install {wanted}'
    if any({*pair} <= versions.keys() for pair in ONEDL.items()):
        names = ' '.join(x for pair in ONEDL.items() for x in pair if x in versions)
        yield (
            f'two stacks install the same modules over each other: {names}',
            f'pip uninstall --yes {names} && {compile_mmcv} && '
            "pip install 'mmsparse[openmmlab]'",
        )
    for x in required:
        extras = ({'extra': extra} for extra in ('', *setup.stacks))
        if x.name in versions and (not x.marker or any(map(x.marker.evaluate, extras))):
            found, fix = versions[x.name], f"pip install '{x.name}{x.specifier}'"
            if not x.specifier.contains(found, prereleases=True):
                problem = f'{x.name} {found} is outside {x.specifier}'
                yield problem, compile_mmcv if x.name == mmcv else fix
    if setup.failure:
        module, error = setup.failure
        yield f'import {module}: {error}', _fix_import(setup, compile_mmcv)
    if setup.gpu and setup.operators == 'CPU':
        yield (
            "mmcv's operators are compiled for the CPU only, so of the detectors only "
            'DETRs run on the GPU; compiling them needs nvcc (CUDA toolkit)',
            f'FORCE_CUDA=1 {COMPILE.format(f"{mmcv}=={versions[mmcv]}")}',
        )


def _fix_import(setup: Setup, compile_mmcv: str) -> str:
    module, error = setup.failure
    if re.search(r"mmcv\._ext|undefined symbol|named 'mmcv", error):
        return compile_mmcv
    if re.search(r'libGL\.so|libglib-2', error):
        return 'apt-get install libgl1 libglib2.0-0'
    if 'torchvision::nms' in error:
        return 'pip install --force-reinstall torch torchvision'
    if 'NoneType takes no arguments' in error and 'transformers' in setup.versions:
        return "pip install 'transformers<4.50'"  # whose names mmpretrain 1.2 uses
    if "named '" in error and setup.stacks:
        return f"pip install 'mmsparse[{setup.stacks[0]}]'"
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
