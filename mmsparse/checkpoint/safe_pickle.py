"""Unpickle without running code: a replacement of ``pickle`` for ``torch.load``.

Tensors and ordered dicts are rebuilt. An object of any other class becomes a
:class:`Placeholder` with its arguments and state; nothing is imported. A file that
calls a function is refused, except for the few calls that write harmless values.
"""

import math
import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import IO, Any

import torch
from torch import Tensor


class RefusedError(pickle.UnpicklingError):
    """The file calls a function that no checkpoint needs."""


class DamagedError(pickle.UnpicklingError):
    """The file describes a tensor that cannot exist."""


class Unpickler(pickle.Unpickler):
    """Unpickler that rebuilds :data:`REBUILT` and makes placeholders of the rest."""

    def load(self) -> Any:
        """Read one pickle; raises RefusedError and DamagedError."""
        # torch sets persistent_load first; its older releases do not check sizes.
        if read_storage := getattr(self, 'persistent_load', None):
            self.persistent_load = partial(self._load_storage, read_storage)
        return super().load()

    def storage_nbytes(self, key: str) -> int:
        """Return the size limit of a storage in bytes; here there is none."""
        return sys.maxsize

    def _load_storage(self, read: Callable[[Any], Any], saved: Any) -> Any:
        if saved[0] == 'module':  # source code, which the oldest files have
            return read(saved)
        name, storage_type, key, device, count, *rest = saved
        if getattr(storage_type, 'source', '') == 'torch.storage.UntypedStorage':
            storage_type = torch.UntypedStorage
        dtype = getattr(storage_type, 'dtype', None)
        nbytes = count * getattr(dtype, 'itemsize', 1)
        if not 0 <= nbytes <= self.storage_nbytes(key):
            raise DamagedError(
                f'{count} elements are to be read from {key!r}, which holds '
                f'{self.storage_nbytes(key)} bytes'
            )
        return read((name, storage_type, key, device, count, *rest))

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch writes, has the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (module, name))
        source = f'{IMPORT_MAPPING.get(module, module)}.{name}'
        if source in DTYPES:
            return DTYPES[source]
        if source in REBUILT:
            return partial(REBUILT[source])  # a copy: a file may set attributes of it
        return _PlaceholderType(name, (Placeholder,), {'source': source})


def load(file: IO[bytes], encoding: str = 'utf-8') -> Any:
    """Read one pickle by :class:`Unpickler`; replaces ``pickle.load``."""
    return Unpickler(file, encoding=encoding).load()


class _PlaceholderType(type):
    """Metaclass of placeholders, by which a file can call only harmless classes.

    Pickle creates objects by ``NEWOBJ``, which uses ``__new__``, and calls any class or
    function by ``REDUCE``, which comes here.
    """

    source: str

    def __call__(cls, *args: Any) -> Any:
        if cls.source not in HARMLESS_CALLS:
            raise RefusedError(f'reading it would call {cls.source}')
        return cls.__new__(cls, *args)


class Placeholder(metaclass=_PlaceholderType):
    """An object of the file whose class is not imported."""

    source = ''  # full name of the class in the file
    args: tuple  # of its constructor
    items: dict  # of a mapping
    elements: list  # of a sequence
    state: Any  # its attributes, usually a dict

    def __new__(cls, *args: Any, **kwargs: Any) -> 'Placeholder':
        self = object.__new__(cls)
        self.args, self.items, self.elements, self.state = args, kwargs, [], None
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        self.elements.append(value)

    def extend(self, values: Iterable) -> None:
        self.elements.extend(values)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f'<{self.source}>'


def walk(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield key and value of everything in containers and placeholders, at any depth.

    The key is None for values outside of dicts.
    """
    seen: set[int] = set()
    pending = [(None, content)]
    while pending:
        key, value = pending.pop()
        if id(value) not in seen:
            seen.add(id(value))
            yield key, value
            pending += _children(value)


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [(None, element) for element in value]
    if isinstance(value, Placeholder):
        parts = (value.items, value.state, value.args, value.elements)
        return [child for part in parts for child in _children(part)]
    return []


def _rebuild_tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any
) -> Tensor:
    """Rebuild a tensor, which must be inside its storage, without hooks of the file.

    Only tensors up to :data:`MAX_EXPANDED` may repeat elements, as after ``expand``.
    """
    # Tensors of version 3 have dtypes without a storage class.
    dtype = next((x for x in rest if isinstance(x, torch.dtype)), storage.dtype)
    untyped = storage._untyped_storage
    numel = untyped.nbytes() // dtype.itemsize
    valid = all(isinstance(x, int) and x >= 0 for x in (offset, *size, *stride))
    if not valid or len(size) != len(stride):
        raise DamagedError(
            f'a tensor has size {tuple(size)}, strides {tuple(stride)} and offset '
            f'{offset}; these must be integers of at least 0, one stride per size'
        )
    count = math.prod(size)
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (offset + last >= numel or count > max(numel, MAX_EXPANDED)):
        raise DamagedError(
            f'a tensor of size {tuple(size)}, strides {tuple(stride)} and offset '
            f'{offset} has more elements than the {numel} in the file'
        )
    return torch.empty(0, dtype=dtype).set_(untyped, offset, size, stride)


def _rebuild_parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


def _rebuild_subclass(function: Any, cls: Any, args: tuple, state: Any) -> Tensor:
    """Rebuild a tensor of a subclass, or with attributes, as a plain tensor."""
    return function(*args)


def _rebuild_object(cls: Any, base: Any, state: Any) -> Placeholder:
    """Create an object of pickle protocols 0 and 1."""
    placeholder = Placeholder.__new__(cls)
    if isinstance(state, dict):
        placeholder.items.update(state)
    return placeholder


def _getattr(owner: Any, name: str) -> str:
    """Return the name of a method of HistoryBuffer, which mmengine pickles."""
    if getattr(owner, 'source', '') != HISTORY_BUFFER:
        raise RefusedError('reading it would call builtins.getattr')
    return name


def _encode(text: str, encoding: str) -> bytes:
    """Rebuild bytes of pickle protocols below 3."""
    if encoding != 'latin1':
        raise RefusedError(f'reading it would call _codecs.encode for {encoding!r}')
    return text.encode(encoding)


MAX_EXPANDED = 2**24  # elements
HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'

DTYPES = {str(x): x for x in vars(torch).values() if isinstance(x, torch.dtype)}

# Functions that replace those named in a file.
REBUILT = {
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
    'torch._tensor._rebuild_from_type_v2': _rebuild_subclass,
    'torch.Size': tuple,
    'collections.OrderedDict': OrderedDict,
    'copyreg._reconstructor': _rebuild_object,
    '_codecs.encode': _encode,
    'builtins.getattr': _getattr,
}

# Values that pickle writes as calls; they become placeholders without a call.
HARMLESS_CALLS = {
    f'{module}.{name}'
    for modules, names in (
        ('builtins', 'bytearray bytes complex frozenset range set slice'),
        ('collections', 'Counter defaultdict deque'),
        ('datetime', 'date datetime time timedelta timezone'),
        ('numpy', 'dtype'),
        ('numpy.core.multiarray numpy._core.multiarray', '_reconstruct scalar'),
        # Python 3.13 has moved the classes.
        (
            'pathlib pathlib._local',
            'PosixPath PurePosixPath PureWindowsPath WindowsPath',
        ),
        ('torch', 'device'),
    )
    for module in modules.split()
    for name in names.split()
}
