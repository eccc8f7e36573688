"""Find mmcv compiled for this torch, Python and machine, or compile it."""

import os
import re
import shutil
from pathlib import Path

from install.stack import Stack
from install.step import Step, clear_line

MEMORY_PER_JOB = 2 * 2**30
# Helpers that several files define: where files are joined, the name of the file is
# added to theirs.
REPEATED = (
    *('PreCalc', 'pre_calc_for_bilinear_interpolate', 'bilinear_interpolate'),
    *('bilinear_interpolate_gradient', 'add'),
)
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
NO_NVCC = """There is a GPU but no nvcc, so mmcv gets CPU operators only and detectors
will not run on the GPU. To change that, install the CUDA toolkit, remove .venv and run
make install again."""


def mmcv_wheel(stack: Stack, step: Step) -> Path:
    """Return the wheel of mmcv with operators for the CPU and the GPUs, if any."""
    # torch may print warnings around the answer.
    answer = re.search(r'^GPU: (.+)$', step.run(stack.python, '-c', PROBE_CUDA), re.M)
    architectures = answer[1] if answer else ''
    if architectures == 'without nvcc':
        print(f'{clear_line()}{NO_NVCC}')
        architectures = ''
    device = 'cuda' + architectures.replace(';', '+') if architectures else 'cpu'
    store = stack.wheels(device)
    if not any(store.glob('*.whl')):
        store.mkdir(parents=True, exist_ok=True)
        compile_mmcv(stack, step, store, architectures)
    return next(store.glob('*.whl'))


def compile_mmcv(stack: Stack, step: Step, store: Path, architectures: str) -> None:
    """Compile mmcv and put the complete wheel into a store."""
    source = stack.venv / 'build' / store.name  # stays if interrupted; ninja resumes
    if not source.exists():
        download_mmcv(stack, step, source)
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
    shutil.copyfile(wheel, partial)
    partial.replace(store / wheel.name)
    shutil.rmtree(source)


def download_mmcv(stack: Stack, step: Step, source: Path) -> None:
    """Download and unpack the source of mmcv."""
    wanted = f'{stack.mmcv}=={stack.pin(stack.mmcv)}'
    options = ('--no-deps', '--no-build-isolation', f'--no-binary={stack.mmcv}')
    step.pip('download', *options, '-d', stack.temporary, wanted)
    archive = next(stack.temporary.glob('*mmcv-*.tar.gz'))
    shutil.unpack_archive(archive, stack.temporary)
    source.parent.mkdir(exist_ok=True)
    unpacked = archive.with_name(archive.name.removesuffix('.tar.gz'))
    setup = unpacked / 'setup.py'
    # Python 3.13 no longer lets exec() add to locals().
    code = setup.read_text().replace("'exec'))", "'exec'), globals())")
    setup.write_text(code.replace('locals()[', 'globals()['))
    for pattern in ('*.cpp', 'cpu/*.cpp'):
        join_sources(sorted((unpacked / 'mmcv/ops/csrc/pytorch').glob(pattern)))
    unpacked.rename(source)


def join_sources(files: list[Path]) -> None:
    """Replace the files of a folder by one that includes them all.

    The compiler spends most of the time of a file of mmcv in torch's headers; joined,
    it reads them once.
    """
    lines = [f'#include <torch/{name}.h>' for name in ('extension', 'script')]
    for file in files:
        included = file.rename(file.with_suffix('.inc'))
        lines += [f'#define {name} {name}_{file.stem}' for name in REPEATED]
        lines += [f'#include "{included.name}"']
        lines += [f'#undef {name}' for name in (*REPEATED, 'min', 'max')]
    files[0].with_stem('joined').write_text('\n'.join(lines) + '\n')


def count_jobs() -> int:
    """Return how many files to compile at a time, by cores and memory."""
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return max(1, min(len(os.sched_getaffinity(0)), memory // MEMORY_PER_JOB))
