"""Unpickling without running code: a stand-in for ``pickle`` in ``torch.load``.

Tensors and ordered dicts are rebuilt. An object of any other class becomes a
:class:`Placeholder` that holds what the file says of it; nothing is imported. A file
that calls a function is refused, except for the few calls by which harmless values are
written.
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
    """The file wants something to be called that no checkpoint needs."""


class _PlaceholderType(type):
    """Type of the placeholder classes, which lets a file call only harmless ones.

    Objects are written by ``NEWOBJ``, which goes through ``__new__``. A call of
    whatever a file names is written by ``REDUCE``, which comes here.
    """

    source: str

    def __call__(cls, *args: Any) -> Any:
        if cls.source not in HARMLESS_CALLS:
            raise RefusedError(f'reading it would call {cls.source}')
        return cls.__new__(cls, *args)


class Placeholder(metaclass=_PlaceholderType):
    """What a file says of an object whose class is not rebuilt.

    Attributes:
        source: Full name of the class in the file.
        args: What the object was made from.
        items: Its entries, if it is a mapping.
        elements: Its elements, if it is a sequence.
        state: Its attributes, mostly a dict.
    """

    source = ''
    args: tuple
    items: dict
    elements: list
    state: Any

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


class DamagedError(pickle.UnpicklingError):
    """What the file says of a tensor cannot be."""


class Unpickler(pickle.Unpickler):
    """Unpickler that rebuilds :data:`REBUILT`; all else becomes placeholders."""

    def load(self) -> Any:
        """Read one pickle.

        Returns:
            The object, with placeholders.

        Raises:
            DamagedError: The numbers of a tensor are not in the file.
        """
        # torch sets it before it calls this; older ones do not compare the sizes.
        if read_storage := getattr(self, 'persistent_load', None):
            self.persistent_load = partial(self._load_storage, read_storage)
        return super().load()

    def room(self, key: str) -> int:
        """Tell how many bytes there are for the numbers of a tensor.

        Args:
            key: What the file calls them.

        Returns:
            A number of bytes, which is as good as none here.
        """
        return sys.maxsize

    def _load_storage(self, read: Callable[[Any], Any], saved: Any) -> Any:
        if saved[0] == 'module':  # source code, which the oldest files have
            return read(saved)
        name, kind, key, place, count, *rest = saved
        if getattr(kind, 'source', '') == 'torch.storage.UntypedStorage':
            kind = torch.UntypedStorage
        size = count * getattr(getattr(kind, 'dtype', None), 'itemsize', 1)
        if not 0 <= size <= self.room(key):
            raise DamagedError(
                f'{count} numbers are to be read from {key!r}, which holds '
                f'{self.room(key)} bytes'
            )
        return read((name, kind, key, place, count, *rest))

    def find_class(self, module: str, name: str) -> Any:
        # A file of protocol 2, torch's, has the names of Python 2.
        module, name = NAME_MAPPING.get((module, name), (module, name))
        source = f'{IMPORT_MAPPING.get(module, module)}.{name}'
        if source in DTYPES:
            return DTYPES[source]
        if source in REBUILT:
            return partial(REBUILT[source])  # A file may change what it gets: not ours.
        return _PlaceholderType(name, (Placeholder,), {'source': source})


def load(file: IO[bytes], encoding: str = 'utf-8') -> Any:
    """Read one pickle.

    Args:
        file: Where to read.
        encoding: That of the strings of Python 2.

    Returns:
        The object, with placeholders.

    Raises:
        RefusedError: The file calls a function.
    """
    return Unpickler(file, encoding=encoding).load()


def walk(content: Any) -> Iterator[tuple[Any, Any]]:
    """Visit all that containers and placeholders hold, at any depth.

    Args:
        content: What was read, or a part of it.

    Yields:
        Every value with its key; None for the key of what has none.
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
    """Make a tensor without the hooks that the file may give it."""
    room = storage._untyped_storage.nbytes() // storage.dtype.itemsize
    _check_layout(room, offset, size, stride)
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _rebuild_tensor_of(
    storage: Any, offset: int, size: tuple, stride: tuple, *rest: Any
) -> Tensor:
    """Make a tensor of a kind of numbers that is newer than the kinds of storages."""
    *_, dtype = rest[:3]
    bytes_ = storage._untyped_storage
    _check_layout(bytes_.nbytes() // dtype.itemsize, offset, size, stride)
    return torch.empty(0, dtype=dtype).set_(bytes_, offset, size, stride)


def _check_layout(room: int, offset: int, size: tuple, stride: tuple) -> None:
    """Raise DamagedError unless a tensor lies within its numbers.

    Only small ones may use a number more than once, as those of ``expand`` do.
    """
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(
        isinstance(x, int) and x >= 0 for x in numbers
    ):
        raise DamagedError(
            f'a tensor has the size {tuple(size)}, strides {tuple(stride)} and the '
            f'offset {offset}; they must be numbers from 0, a stride for each size'
        )
    count = math.prod(size)
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count and (offset + last >= room or count > max(room, EXPANDED)):
        raise DamagedError(
            f'a tensor of the size {tuple(size)}, strides {tuple(stride)} and the '
            f'offset {offset} has more numbers than the {room} in the file'
        )


def _rebuild_parameter(data: Tensor, *rest: Any) -> Tensor:
    return data


def _rebuild_subclass(function: Any, kind: Any, args: tuple, state: Any) -> Tensor:
    """Make a tensor of a subclass, or with attributes, a plain one."""
    return function(*args)


def _rebuild_object(cls: Any, base: Any, state: Any) -> Placeholder:
    """Make an object the way of pickle protocols 0 and 1."""
    made = Placeholder.__new__(cls)
    if isinstance(state, dict):
        made.items.update(state)
    return made


def _getattr(owner: Any, name: str) -> str:
    """Name a method of mmengine's HistoryBuffer, which every training stores."""
    if getattr(owner, 'source', '') != HISTORY_BUFFER:
        raise RefusedError('reading it would call builtins.getattr')
    return name


def _encode(text: str, encoding: str) -> bytes:
    """Make bytes the way of pickle protocols below 3."""
    if encoding != 'latin1':
        raise RefusedError(f'reading it would call _codecs.encode for {encoding!r}')
    return text.encode(encoding)


EXPANDED = 2**24
HISTORY_BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'

DTYPES = {
    str(value): value
    for value in vars(torch).values()
    if isinstance(value, torch.dtype)
}

# What is really called, by the name that a file gives it.
REBUILT = {
    'torch._utils._rebuild_tensor': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': _rebuild_tensor,
    'torch._utils._rebuild_tensor_v3': _rebuild_tensor_of,
    'torch._utils._rebuild_parameter': _rebuild_parameter,
    'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
    'torch._tensor._rebuild_from_type_v2': _rebuild_subclass,
    'torch.Size': tuple,
    'collections.OrderedDict': OrderedDict,
    'copyreg._reconstructor': _rebuild_object,
    '_codecs.encode': _encode,
    'builtins.getattr': _getattr,
}

# Values that are written as a call; they become placeholders without one.
HARMLESS_CALLS = {
    f'{module}.{name}'
    for modules, names in (
        ('builtins', 'bytearray bytes complex frozenset range set slice'),
        ('collections', 'Counter defaultdict deque'),
        ('datetime', 'date datetime time timedelta timezone'),
        ('numpy', 'dtype'),
        ('numpy.core.multiarray numpy._core.multiarray', '_reconstruct scalar'),
        ('pathlib', 'PosixPath PurePosixPath PureWindowsPath WindowsPath'),
        ('torch', 'device'),
    )
    for module in modules.split()
    for name in names.split()
}
