"""Let mmengine 0.10 read its own checkpoints, safetensors, and files of others safely.

Importing :mod:`mmsparse.registry` calls :func:`allow_mmengine_checkpoints` and
:func:`register_safetensors`; the commands also call :func:`register_safe_loader`.
"""

import _codecs
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmsparse.checkpoint.files import read_checkpoint, read_metadata
from mmsparse.checkpoint.safe_pickle import HISTORY_BUFFER, Placeholder, walk
from mmsparse.checkpoint.state_dict import check_weights
from mmsparse.errors import UsageError

RESUMED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
CONFIG_TEXT = 'config'  # in meta: Python that mmengine runs when it resumes
PLAIN_DTYPES = 'biufcSU'  # numpy dtype codes that hold no objects
CONTAINERS = {
    'builtins.set': set,
    'builtins.frozenset': frozenset,
    'collections.Counter': Counter,  # milestones of a MultiStepLR
}


def allow_mmengine_checkpoints() -> None:
    """Let weights-only ``torch.load`` read the checkpoints of mmengine 0.10.

    Since torch 2.6 ``torch.load`` unpickles weights only. mmengine stores its message
    hub (history buffers with numpy values) with the weights and does not declare these
    classes safe, so it cannot load its own checkpoints. This declares just these
    classes safe; a file with other code is still refused.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_safe_globals())


def _safe_globals() -> list:
    scalar = np.float64(0).__reduce__()[0]
    reconstruct = np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ('?', 'i4', 'i8', 'f4', 'f8')}
    # NumPy 2 renamed its private module; a file names that of its NumPy version.
    numpy_functions = [
        (function, f'numpy.{core}.multiarray.{function.__name__}')
        for function in (scalar, reconstruct)
        for core in ('core', '_core')
    ]
    return [
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        *sorted(dtypes, key=lambda dtype: dtype.__name__),
        *numpy_functions,
        (_codecs.encode, '_codecs.encode'),
        (_history_buffer_method, 'builtins.getattr'),
    ]


def _history_buffer_method(owner: Any, name: str) -> Callable:
    """Replace ``getattr``, by which a HistoryBuffer pickles its statistics methods.

    Others raise UnpicklingError; ``getattr`` itself would let a file run code.
    """
    methods = {'mean', 'max', 'min', 'current'}
    if owner is not HistoryBuffer or name not in methods:
        raise UnpicklingError(
            f'A checkpoint may name only the methods {sorted(methods)} of '
            f'HistoryBuffer; got {owner!r}.{name}.'
        )
    return getattr(HistoryBuffer, name)


def register_safetensors() -> None:
    """Let mmengine read ``.safetensors`` files: ``Pretrained``, ``load_from``."""
    CheckpointLoader.register_scheme(
        r'(?!\w+://).*\.safetensors$', _load_safetensors, force=True
    )


def _load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file, with its metadata as mmengine's ``meta``."""
    path = Path(filename).expanduser()
    weights = read_checkpoint(path)
    return dict(meta=read_metadata(path, weights), state_dict=weights)


def register_safe_loader() -> None:
    """Let mmengine read local files by :func:`load_safely`, with any torch.

    From then on ``load_from``, ``resume``, ``init_cfg`` and the inferencers of mmdet,
    mmseg and mmpretrain run no code of a file.
    """
    CheckpointLoader.register_scheme('', load_safely, force=True)


def load_safely(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint for mmengine without running code of the file.

    Args:
        filename: The file.
        map_location: Not used; mmengine copies tensors from the CPU.

    Returns:
        The checkpoint with history buffers and numpy values rebuilt. Objects of other
        classes are left out with a warning, and so is the text of the config, which
        mmengine would run.

    Raises:
        UsageError: The file cannot be read without running its code, its weights are
            infinite or NaN, or a state to resume from has objects of other classes;
            names the file.
    """
    path = Path(filename).expanduser()
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UsageError(f'{path} must hold a dict; got {type(content).__name__}.')
    try:
        content = _rebuild_all(content, {})
    except Exception as error:  # noqa: BLE001 - a damaged file may raise anything
        reason = f'{type(error).__name__}: {error}'
        raise UsageError(f'{path} is damaged ({reason}).') from error
    for name in RESUMED:
        if objects := _placeholders(content.get(name)):
            raise UsageError(
                f'{path}: {name} has {objects[0]}, which only code of the file could '
                f'rebuild. If you trust its source, save its state dict alone with '
                f'torch and start from these weights without --resume.'
            )
    state = content.get('state_dict', content)
    if isinstance(state, dict):
        weights = {k: x for k, x in state.items() if isinstance(x, Tensor)}
        try:
            check_weights(weights)
        except ValueError as error:
            raise UsageError(f'{path}: {error}') from error
    content = _without_placeholders(content, str(path))
    if isinstance(content.get('meta'), dict):
        content['meta'].pop(CONFIG_TEXT, None)
    return content


def _rebuild_all(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Replace placeholders of known classes at any depth, in dicts and lists in place.

    ``done`` has each container and its replacement by the container's id.
    """
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, Placeholder):
        return _rebuild(value)
    if isinstance(value, (dict, list)):
        done[id(value)] = value, value
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            value[key] = _rebuild_all(value[key], done)
    elif type(value) is tuple:
        rebuilt = tuple(_rebuild_all(x, done) for x in value)
        done[id(value)] = value, rebuilt
        return rebuilt
    return value


def _rebuild(found: Placeholder) -> Any:
    """Rebuild an object of a known class; return another placeholder as it is."""
    name = found.source.rpartition('.')[2]
    if found.source == HISTORY_BUFFER:
        state = found.state
        columns = (_rebuild(state[x]) for x in ('_log_history', '_count_history'))
        return HistoryBuffer(*columns, state['max_length'])
    if found.source in CONTAINERS:
        return CONTAINERS[found.source](*found.args)
    if found.source.startswith('numpy.') and name == 'scalar':
        dtype, data = found.args
        return _rebuild_array(found, dtype, data, ())
    if found.source.startswith('numpy.') and name == '_reconstruct':
        _, shape, dtype, is_fortran, data = found.state
        return _rebuild_array(found, dtype, data, shape, 'F' if is_fortran else 'C')
    return found


def _rebuild_array(
    found: Placeholder, dtype: Placeholder, data: Any, shape: Any, order: str = 'C'
) -> Any:
    """Return an array, or a scalar if it has no axes; the placeholder for objects."""
    dtype = np.dtype(str(dtype.args[0])).newbyteorder(dtype.state[1])
    if dtype.kind not in PLAIN_DTYPES:
        return found
    data = data if isinstance(data, bytes) else b''  # pickled as a call of bytes()
    array = np.ndarray(shape, dtype, buffer=data, order=order).copy()
    return array if array.ndim else array[()]


def _without_placeholders(content: dict[str, Any], where: str) -> dict[str, Any]:
    kept = {}
    for key, value in content.items():
        if not _placeholders(value):
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _without_placeholders(value, f'{where}: {key}')
        else:
            print_log(
                f'{where}: {key} is left out; only code of the file could rebuild it.',
                logger='current',
                level=logging.WARNING,
            )
    return kept


def _placeholders(value: Any) -> list[Placeholder]:
    return [x for _, x in walk(value) if isinstance(x, Placeholder)]
