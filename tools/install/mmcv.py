"""Find mmcv compiled for this torch, Python and machine, or compile it."""

import os
import re
import shutil
from pathlib import Path

from install.stack import Stack
from install.step import Step, clear_line

MEMORY_PER_JOB = 3 * 2**30  # measured: gcc 2.0 GiB, nvcc 3.4 with half of the files
# Prints the compute capabilities to compile for, if there are GPUs and nvcc.
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
NO_NVCC = """There is a GPU but no nvcc: detectors will not run on the GPU. To change
that, install the CUDA toolkit, remove .venv and run make install again."""
# A build backend for the download alone, for which pip would run mmcv's setup.py before
# it is fixed for Python 3.13: takes the metadata from the archive. OneDL's mmcv names
# the backend in pyproject.toml; pip takes __legacy__ for OpenMMLab's, without the file.
BACKEND = """
import os, shutil, sys
def prepare_metadata_for_build_wheel(folder, settings):
    os.mkdir(f'{folder}/mmcv.dist-info')
    shutil.copyfile('PKG-INFO', f'{folder}/mmcv.dist-info/METADATA')
    return 'mmcv.dist-info'
__legacy__ = sys.modules[__name__]
"""
# In setup.py: Python 3.13 no longer lets exec() add to locals(), and torch chooses the
# version of C++ that it needs, since 2.15 C++20.
FIXES = {
    "'exec'))": "'exec'), globals())",
    'locals()[': 'globals()[',
    "['-std=c++17']": '[]',
}
# Helpers that several files define: joined, the name of the file is added to theirs.
REPEATED = (
    *('PreCalc', 'add', 'bilinear_interpolate', 'bilinear_interpolate_gradient'),
    'pre_calc_for_bilinear_interpolate',
)


def mmcv_wheel(stack: Stack, step: Step) -> Path:
    """Return the wheel of mmcv with operators for the CPU and the GPUs, if any."""
    # torch may print warnings around the answer.
    answer = re.search(r'^GPU: (.+)$', step.run(stack.python, '-c', PROBE_CUDA), re.M)
    architectures = answer[1] if answer else ''
    if architectures == 'without nvcc':
        print(f'{clear_line()}{NO_NVCC}')
        architectures = ''
    device = 'cuda' + architectures.replace(';', '+') if architectures else 'cpu'
    store = stack.store(device)
    if not any(store.glob('*.whl')):
        compile_mmcv(stack, step, store, architectures)
    return next(store.glob('*.whl'))


def compile_mmcv(stack: Stack, step: Step, store: Path, architectures: str) -> None:
    """Compile mmcv and put the complete wheel into a store."""
    source = stack.venv / f'build-{store.name}'  # stays if interrupted; ninja resumes
    if not source.exists():
        download_mmcv(stack, step, source)
    partial = store / f'partial-{os.getpid()}'
    step.pip(
        *('wheel', '-v', '--no-deps', '--no-build-isolation', '-w', partial, source),
        MMCV_WITH_OPS='1',
        MAX_JOBS=str(count_jobs()),
        CFLAGS='-g0 -O1',
        FORCE_CUDA='1' if architectures else '0',
        TORCH_CUDA_ARCH_LIST=architectures,
        CUDA_VISIBLE_DEVICES='',  # FORCE_CUDA alone decides
    )
    wheel = next(partial.iterdir())
    wheel.rename(store / wheel.name)
    partial.rmdir()
    shutil.rmtree(source)


def download_mmcv(stack: Stack, step: Step, source: Path) -> None:
    """Download and unpack the source of mmcv, and make it compile faster."""
    backend = stack.temporary / 'setuptools' / 'build_meta.py'
    backend.parent.mkdir(parents=True)
    backend.write_text(BACKEND)
    backend.with_name('__init__.py').touch()
    wanted = f'{stack.mmcv}=={stack.pin(stack.mmcv)}'
    options = ('--no-deps', '--no-build-isolation', f'--no-binary={stack.mmcv}')
    options += ('-d', stack.temporary, wanted)
    step.pip('download', *options, PYTHONPATH=str(stack.temporary))
    archive = next(stack.temporary.glob('*mmcv-*.tar.gz'))
    shutil.unpack_archive(archive, stack.temporary)
    unpacked = archive.with_name(archive.name.removesuffix('.tar.gz'))
    setup = unpacked / 'setup.py'
    code = setup.read_text()
    for old, new in FIXES.items():
        code = code.replace(old, new)
    setup.write_text(code)
    csrc = unpacked / 'mmcv' / 'ops' / 'csrc' / 'pytorch'
    # Not CUDA's: several of them define the same names.
    for pattern in ('*.cpp', 'cpu/*.cpp'):
        if files := sorted(csrc.glob(pattern)):
            join_sources(files)
    unpacked.rename(source)


def join_sources(files: list[Path]) -> None:
    """Replace files by one that includes them.

    The compiler spends most of the time of a file of mmcv in torch's headers; joined,
    it reads them once.
    """
    lines = ['#include <torch/extension.h>', '#include <torch/script.h>']
    for file in files:
        included = file.rename(file.with_suffix('.inc'))
        lines += [f'#define {name} {name}_{file.stem}' for name in REPEATED]
        lines += [f'#include "{included.name}"']
        lines += [f'#undef {name}' for name in (*REPEATED, 'min', 'max')]
    files[0].with_stem(f'joined_{files[0].stem}').write_text('\n'.join(lines) + '\n')


def count_jobs() -> int:
    """Return how many files to compile at a time: MAX_JOBS, or by cores and memory."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    fitting = min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB)
    return int(os.environ.get('MAX_JOBS', max(1, fitting)))
