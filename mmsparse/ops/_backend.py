"""Which of its ways an op is computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# torch 2.1 has it under its other name only.
is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)

_reference_only = False


@contextmanager
def reference_only() -> Iterator[None]:
    """Let ``backend='auto'`` be ``'reference'``, the definition, in all ops.

    To compare a whole model with its fast paths, or to count what the definition
    multiplies: fast paths may compute products that a mask takes away again.

    Yields:
        Nothing.
    """
    global _reference_only
    before, _reference_only = _reference_only, True
    try:
        yield
    finally:
        _reference_only = before


def is_exporting() -> bool:
    """Tell whether ``torch.export`` traces what runs; torch can tell from 2.7 on.

    Returns:
        Whether it does.
    """
    return getattr(torch.compiler, 'is_exporting', bool)()


def pick_backend(backend: str, known: Sequence[str]) -> str:
    """Check the name of a backend.

    Args:
        backend: What the user said.
        known: The backends of the op, ``auto`` and ``reference`` among them.

    Returns:
        The name; ``reference`` for ``auto`` within :func:`reference_only`.

    Raises:
        ValueError: It is not known.
    """
    if backend not in known:
        raise ValueError(f'backend must be one of {tuple(known)}; got {backend!r}.')
    return 'reference' if backend == 'auto' and _reference_only else backend
