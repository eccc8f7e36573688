"""Checkpoints of MMEngine's trainings, read for MMEngine without running their code."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmsparse.checkpoint.files import read_checkpoint
from mmsparse.checkpoint.safe_pickle import HISTORY_BUFFER, Placeholder, walk
from mmsparse.checkpoint.state_dict import check_weights
from mmsparse.errors import UsageError

RESUMED = ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers')
CODE = 'config'  # in meta: text that MMEngine runs when it resumes
NUMBERS = 'biufcSU'  # kinds of dtypes that hold no objects
PLAIN = {'builtins.set': set, 'builtins.frozenset': frozenset}


def let_mmengine_read_inertly() -> None:
    """Let MMEngine read the files of this machine by :func:`load_from_local`.

    ``load_from``, ``resume``, ``init_cfg`` and the hosts' inferencers read a file so in
    this process from now on, with any torch.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)


def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint as MMEngine needs it; no code of the file runs.

    Histories and numbers of numpy are rebuilt, of which trainings store some.

    Args:
        filename: The file.
        map_location: Not used: tensors are on the CPU, from where they are copied into
            the model and the optimizer.

    Returns:
        The checkpoint. Left out are objects of other classes, with a warning, and the
        text of a configuration that MMEngine would run.

    Raises:
        UsageError: The file cannot be read without running its code, its weights are no
            finite numbers, or what a training goes on with has objects of other
            classes; names it.
    """
    path = Path(filename).expanduser()
    content = read_checkpoint(path)
    if not isinstance(content, dict):
        raise UsageError(f'{path} must hold a dict; got {type(content).__name__}.')
    try:
        content = _restored(content, {})
    except Exception as error:  # noqa: BLE001 - it may say anything of its objects
        reason = f'{type(error).__name__}: {error}'
        raise UsageError(f'{path} is damaged ({reason}).') from error
    for name in RESUMED:
        if objects := _objects(content.get(name)):
            raise UsageError(
                f'{path}: {name} has {objects[0]}, which only code of the file could '
                f'rebuild. Without --resume, weights alone can be a start: save its '
                f'state dict with torch if you trust the source.'
            )
    state = content.get('state_dict', content)
    if isinstance(state, dict):
        named = {k: x for k, x in state.items() if isinstance(x, Tensor)}
        try:
            check_weights(named)
        except ValueError as error:
            raise UsageError(f'{path}: {error}') from error
    content = _without_objects(content, str(path))
    if isinstance(content.get('meta'), dict):
        content['meta'].pop(CODE, None)
    return content


def _restored(value: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """Put what is meant in the place of placeholders, at any depth.

    Args:
        value: What was read, or a part of it; dicts and lists are changed.
        done: Containers with what they became, by their ids.
    """
    if id(value) in done:
        return done[id(value)][1]
    if isinstance(value, Placeholder):
        return _rebuilt(value)
    if isinstance(value, (dict, list)):
        done[id(value)] = value, value
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys:
            value[key] = _restored(value[key], done)
    elif type(value) is tuple:
        made = tuple(_restored(x, done) for x in value)
        done[id(value)] = value, made
        return made
    return value


def _rebuilt(found: Placeholder) -> Any:
    """What a placeholder stands for; itself if that is none of the known classes."""
    name = found.source.rpartition('.')[2]
    if found.source == HISTORY_BUFFER:
        state = found.state
        columns = (_rebuilt(state[x]) for x in ('_log_history', '_count_history'))
        return HistoryBuffer(*columns, state['max_length'])
    if found.source in PLAIN:
        return PLAIN[found.source](*found.args)
    if found.source.startswith('numpy.') and name == 'scalar':
        dtype, raw = found.args
        return _array(found, dtype, raw, ())
    if found.source.startswith('numpy.') and name == '_reconstruct':
        _, shape, dtype, by_column, raw = found.state
        return _array(found, dtype, raw, shape, 'F' if by_column else 'C')
    return found


def _array(
    found: Placeholder, dtype: Placeholder, raw: Any, shape: Any, order: str = 'C'
) -> Any:
    """An array or, of no axes, a number; the placeholder if it holds objects."""
    dtype = np.dtype(str(dtype.args[0])).newbyteorder(dtype.state[1])
    if dtype.kind not in NUMBERS:
        return found
    raw = raw if isinstance(raw, bytes) else b''  # which torch writes as a call
    array = np.ndarray(shape, dtype, buffer=raw, order=order).copy()
    return array if array.ndim else array[()]


def _without_objects(content: dict[str, Any], place: str) -> dict[str, Any]:
    kept = {}
    for key, value in content.items():
        if not _objects(value):
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _without_objects(value, f'{place}: {key}')
        else:
            told = (
                f'{place}: {key} is left out; only code of the file could rebuild it.'
            )
            print_log(told, logger='current', level=logging.WARNING)
    return kept


def _objects(value: Any) -> list[Placeholder]:
    return [x for _, x in walk(value) if isinstance(x, Placeholder)]
