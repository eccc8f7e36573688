"""What mmengine 0.10 needs to read checkpoints: its own under torch >= 2.6, and others.

Since torch 2.6 ``torch.load`` unpickles weights only. mmengine stores its message hub
(history buffers with numpy values) beside the weights and neither declares these
classes safe nor asks for full unpickling, so it cannot load its own checkpoints.
:func:`allow_mmengine_checkpoints` declares just those classes safe; loading stays
weights-only, and a file with other code in it is still refused.

:func:`read_safetensors` lets mmengine read files of safetensors wherever it reads
checkpoints. Importing :mod:`mmsparse.registry` calls both; they are the only side
effects of our imports beyond registration.
"""

import _codecs
import json
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader


def allow_mmengine_checkpoints() -> None:
    """Let weights-only ``torch.load`` read the checkpoints of mmengine 0.10.

    Does nothing on torch releases whose ``torch.load`` has no allow-list.
    """
    if hasattr(torch.serialization, 'add_safe_globals'):
        torch.serialization.add_safe_globals(_safe_globals())


def _safe_globals() -> list:
    scalar = np.float64(0).__reduce__()[0]
    reconstruct = np.zeros(0).__reduce__()[0]
    dtypes = {type(np.dtype(name)) for name in ('?', 'i4', 'i8', 'f4', 'f8')}
    # NumPy 2 renamed its private module; a file names the one of its own NumPy.
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
    """Stand in for ``getattr``, by which a HistoryBuffer pickles its methods.

    Raises:
        UnpicklingError: The file asks for anything but a statistics method of
            HistoryBuffer. ``getattr`` itself would let a file run code.
    """
    methods = {'mean', 'max', 'min', 'current'}
    if owner is not HistoryBuffer or name not in methods:
        raise UnpicklingError(
            f'The checkpoint asks for {owner!r}.{name}; only the methods '
            f'{sorted(methods)} of HistoryBuffer may be named in a checkpoint.'
        )
    return getattr(HistoryBuffer, name)


def read_safetensors() -> None:
    """Let mmengine read files ending in .safetensors: ``Pretrained``, ``load_from``."""
    CheckpointLoader.register_scheme(
        r'(?!\w+://).*\.safetensors$', _load_safetensors, force=True
    )


def _load_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a local file, with what its metadata say as the hosts expect it."""
    weights = import_module('mmsparse.checkpoint.files').read_checkpoint(filename)
    with import_module('safetensors').safe_open(filename, framework='pt') as file:
        told = file.metadata() or {}
    meta = {key: _plain(value) for key, value in told.items()}
    return dict(meta=meta, state_dict=weights)


def _plain(text: str) -> Any:
    if text[:1] in ('{', '['):
        with suppress(ValueError, RecursionError):
            return json.loads(text)
    return text
