"""Choice of an op's backend, and the switch that makes it the reference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch

# torch 2.1 has it under its other name only.
_is_compiling = getattr(torch.compiler, 'is_compiling', torch._utils.is_compiling)

_reference_only: ContextVar[bool] = ContextVar('reference_only', default=False)


@contextmanager
def reference_only() -> Iterator[None]:
    """Make ``backend='auto'`` choose ``'reference'`` in all ops.

    For comparing a model with its fast backends, and for counting MACs: a fast backend
    may compute logits that a mask removes again. It holds for the current thread or
    asyncio task; compiled code keeps the choice that it was compiled with.

    Yields:
        Nothing.
    """
    token = _reference_only.set(True)
    try:
        yield
    finally:
        _reference_only.reset(token)


@torch.compiler.assume_constant_result  # the compiler cannot trace a ContextVar
def _is_reference_only() -> bool:
    return _reference_only.get()


def is_tracing() -> bool:
    """Return whether something records or transforms plain operations.

    That is the compiler, ``torch.export``, ``torch.jit`` or ``torch.func``. A recorded
    graph must not depend on whether gradients are enabled, nor, by chunks for example,
    on the batch size; ``torch.jit`` saves no autograd function, and ``torch.func``
    transforms neither these nor operations in place.
    """
    return _is_compiling() or torch.jit.is_tracing() or is_transforming()


def is_transforming() -> bool:
    """Return whether ``torch.func`` is transforming, as ``vmap`` and ``grad`` do."""
    if _is_compiling():
        return False
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_symbolic(*lengths: int) -> bool:
    """Return whether the compiler or ``torch.export`` records a size as unknown.

    Older versions of torch cannot say that: False.
    """
    if not _is_compiling():
        return False
    from torch.fx.experimental import symbolic_shapes

    is_known = getattr(symbolic_shapes, 'has_static_value', lambda length: True)
    return not all(is_known(length) for length in lengths)


def is_exporting() -> bool:
    """Return whether ``torch.export`` is tracing; torch reports that from 2.7 on."""
    return getattr(torch.compiler, 'is_exporting', bool)()


def resolve_backend(backend: str, known: Sequence[str]) -> str:
    """Check the name of a backend, and apply :func:`reference_only`.

    Args:
        backend: Name that the caller passed.
        known: Backends of the op, ``auto`` and ``reference`` among them.

    Returns:
        The name; ``reference`` for ``auto`` within :func:`reference_only`.

    Raises:
        ValueError: The name is unknown.
    """
    if backend not in known:
        raise ValueError(f'backend must be one of {tuple(known)}; got {backend!r}.')
    if backend == 'auto' and _is_reference_only():
        return 'reference'
    return backend
