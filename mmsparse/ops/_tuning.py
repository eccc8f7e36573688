"""Measured choices of ``backend='auto'``: which backend was fastest on a device.

``tools/benchmark.py ops --tune`` writes a JSON file for the device at hand into
:func:`user_folder`; files of devices that we have measured are in the folder
``tuning/``. A file has measurements of each op: the sizes it ran with, dtype, whether
with a backward pass, and milliseconds of every backend. ``auto`` takes the fastest of
the measurement whose sizes are nearest, in octaves.
"""

import json
import os
import re
from collections.abc import Mapping
from functools import cache
from math import dist, log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsparse.ops._backend import is_symbolic

FOLDER = Path(__file__).with_name('tuning')
FOLDER_VARIABLE = 'MMSPARSE_TUNING'


def user_folder() -> Path:
    """Return the folder of the user's files, that of $MMSPARSE_TUNING if it is set."""
    default = Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache') / 'mmsparse/tuning'
    return Path(os.environ.get(FOLDER_VARIABLE) or default).expanduser()


def tuning_file(device_name: str) -> str:
    """Return the name of a device's file."""
    return re.sub(r'\W+', '-', device_name).strip('-').lower() + '.json'


@cache
def device_name(device: torch.device) -> str:
    """Return the name of a GPU or processor as its maker gives it."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type != 'cpu':
        return device.type
    try:
        found = re.search(r'model name\s*: (.*)', Path('/proc/cpuinfo').read_text())
    except OSError:
        found = None
    return found[1] if found else 'cpu'


@cache
def measurements(device: torch.device) -> Mapping[str, list[dict[str, Any]]]:
    """Read the measurements of a device by op, the user's or else those shipped.

    Args:
        device: Device of a tensor.

    Returns:
        Name of an op to its measurements; empty if there is no file.

    Raises:
        ValueError: A file cannot be read.
    """
    name = tuning_file(device_name(device))
    for path in (user_folder() / name, FOLDER / name):
        if path.exists():
            try:
                return json.loads(path.read_text())['ops']
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path} must be a file of `tools/benchmark.py ops --tune`; '
                    f'got {error!r}. Remove it or write it again.'
                ) from error
    return {}


def fastest_backend(
    op: str, x: Tensor, known: tuple[str, ...], **sizes: int
) -> str | None:
    """Return the backend that was the fastest on the device of a tensor.

    Args:
        op: Name of the op.
        x: Argument of the op, for device, dtype and whether it needs a gradient.
        known: Backends that can compute this call.
        **sizes: What the time depends on, named as in the file, for example ``tokens``.

    Returns:
        Name of the backend; None if nothing was measured with this dtype, or a graph
        of other sizes or for other devices is recorded.
    """
    # A trace records sizes as tensors, and is saved for other devices, too.
    if torch.jit.is_tracing() or is_symbolic(*sizes.values()):
        return None
    training = x.requires_grad and torch.is_grad_enabled()
    return _fastest(op, x.device, x.dtype, training, known, **sizes)


@torch.compiler.assume_constant_result  # the compiler cannot trace files
def _fastest(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    training: bool,
    known: tuple[str, ...],
    **sizes: int,
) -> str | None:
    if device.type == 'cuda' and not torch.cuda.is_initialized():
        return None  # a tensor of FakeTensorMode
    dtype_name = str(dtype).removeprefix('torch.')
    best: tuple[float, str] | None = None
    for row in measurements(device).get(op, ()):
        times = {k: v for k, v in row['milliseconds'].items() if k in known}
        if row['dtype'] != dtype_name or row['training'] != training or not times:
            continue
        distance = dist(*_octaves(row['sizes'], sizes))
        if best is None or distance < best[0]:
            best = distance, min(times, key=times.__getitem__)
    return best[1] if best else None


def _octaves(
    measured: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[list[float], list[float]]:
    names = sorted(sizes)
    return [log2(measured[x]) for x in names], [log2(sizes[x]) for x in names]
