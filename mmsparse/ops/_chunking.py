"""What the backward pass computes anew instead of keeping it."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmsparse.ops._backend import is_compiling, pick_backend
from mmsparse.ops._precision import no_autocast

BACKENDS = ('auto', 'reference', 'checkpointed')
PICTURE_BACKENDS = ('auto', 'reference', 'chunked')
# 16 MiB. Measured on a CPU for a hidden map of 49 MiB, 12 MiB at a time took 0.47 of
# the time of the whole forward and 0.57 with backward; where the C library must keep
# its memory (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_), 1.09 and 1.07.
PART = 2**22


def checkpointed(
    function: Callable[[Tensor], Tensor], x: Tensor, backend: str = 'auto'
) -> Tensor:
    """Call a function, and keep nothing of what it computes but its result.

    By default only on a CPU: this takes time for memory (5 to 10 % of the time of the
    MLP that it serves there), and was not measured elsewhere.

    Args:
        function: Maps a tensor to a tensor, the same whenever it is called. Of its last
            step the inputs are computed again, not the step itself.
        x: What it is called with.
        backend: What to keep: ``reference`` (all that the backward pass needs),
            ``recompute`` (``x``) or ``auto``.

    Returns:
        What the function returns.

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = _on_cpu(pick_backend(backend, BACKENDS), x)
    if backend == 'reference' or not x.requires_grad:
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def chunked(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    numbers: int,
    backend: str = 'auto',
) -> Tensor:
    """Call a function with a few pictures at a time.

    On a CPU, a large piece of memory goes back to the system when it is free and comes
    anew page by page, which takes longer than to compute what it holds.

    Args:
        function: Maps (B, ...) to (B, ...), every picture on its own.
        x: What it is called with, (B, ...).
        numbers: How many the largest tensor within the function has for one picture.
        backend: How many at a time: ``reference`` (all), ``parts`` (as many as have
            ``PART`` numbers, but one at least) or ``auto``.

    Returns:
        (B, ...).

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = _on_cpu(pick_backend(backend, PICTURE_BACKENDS), x)
    length = max(PART // numbers, 1)
    if backend == 'reference' or x.shape[0] <= length:
        return function(x)
    return torch.cat([function(part) for part in x.split(length)])


def chunked_attention(
    attend: Callable[..., Tensor],
    queries: tuple[Tensor, ...],
    others: tuple[Tensor, ...],
    length: int,
) -> Tensor:
    """Attend with a part of the queries at a time, and keep nothing but the inputs.

    What is large, such as logits, biases and copies of keys, lives as long as its part
    does; the backward pass computes it again. A single part is an ordinary call.
    Autocast is off in the parts. Of several there are no gradients of gradients.

    Args:
        attend: Computes a part: called with that of every tensor of ``queries`` and
            then with ``others``, it returns (n, ...).
        queries: Tensors of (N, ...) that are cut along their first axis.
        others: What all parts need. Tensors of integers or without gradient, too.
        length: Queries of a part, n; the last may have fewer.

    Returns:
        (N, ...).
    """
    # The compiler sees through a single part, and decides for itself what to keep.
    if is_compiling() or queries[0].shape[0] <= length:
        with no_autocast(queries[0]):
            return attend(*queries, *others)
    return _InParts.apply(attend, length, len(queries), *queries, *others)


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attend: Callable, length: int, num_queries: int, *tensors: Tensor
    ) -> Tensor:
        ctx.attend, ctx.length, ctx.num_queries = attend, length, num_queries
        ctx.save_for_backward(*tensors)
        queries, others = tensors[:num_queries], tensors[num_queries:]
        with no_autocast(queries[0]):
            return torch.cat([attend(*x, *others) for x in _cut(queries, length)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[3:]
        of_queries, of_others = wanted[: ctx.num_queries], wanted[ctx.num_queries :]
        saved = ctx.saved_tensors  # activation checkpointing lets them be read once
        queries = saved[: ctx.num_queries]
        # The gradients of all parts gather in these.
        others = _leaves(saved[ctx.num_queries :], of_others)
        grads = []
        for part, part_grad in zip(
            _cut(queries, ctx.length), grad.split(ctx.length), strict=True
        ):
            part = _leaves(part, of_queries)
            with torch.enable_grad(), no_autocast(grad):
                out = ctx.attend(*part, *others)
            torch.autograd.backward(out, part_grad)
            grads.append([x.grad for x in part])
        joined = (
            torch.cat(found) if want else None
            for found, want in zip(zip(*grads, strict=True), of_queries, strict=True)
        )
        return (None, None, None, *joined, *(x.grad for x in others))


def _on_cpu(backend: str, x: Tensor) -> str:
    """The definition for ``auto``, unless it is computed on a CPU step by step."""
    # The compiler decides for itself what to keep.
    elsewhere = x.device.type != 'cpu' or is_compiling()
    return 'reference' if backend == 'auto' and elsewhere else backend


def _cut(tensors: Iterable[Tensor], length: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(x.split(length) for x in tensors), strict=True)


def _leaves(tensors: Iterable[Tensor], wanted: Iterable[bool]) -> tuple[Tensor, ...]:
    """The same values, at the beginning of a graph."""
    return tuple(
        x.detach().requires_grad_(want) for x, want in zip(tensors, wanted, strict=True)
    )
