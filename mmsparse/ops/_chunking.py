"""Chunked and checkpointed calls, which trade time for memory."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmsparse.ops._backend import is_tracing, resolve_backend
from mmsparse.ops._devices import settings_for
from mmsparse.ops._precision import no_autocast

CHECKPOINT_BACKENDS = ('auto', 'reference', 'checkpointed')
CHUNK_BACKENDS = ('auto', 'reference', 'chunked')


def checkpointed(
    function: Callable[[Tensor], Tensor], x: Tensor, backend: str = 'auto'
) -> Tensor:
    """Call a function with activation checkpointing.

    ``auto`` does so on a CPU, for large arguments; the MLPs that use it take 5 to 10 %
    longer. It was not measured elsewhere.

    Args:
        function: Deterministic function of a tensor. The backward pass computes it
            again up to the inputs of its last operation.
        x: Argument of the function.
        backend: ``reference`` keeps all that the backward pass needs, ``checkpointed``
            only ``x``; or ``auto``.

    Returns:
        Result of the function.

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = resolve_backend(backend, CHECKPOINT_BACKENDS)
    if backend == 'auto':
        pays = x.requires_grad and not is_tracing()  # before sizes: tracing
        pays = pays and x.numel() >= settings_for(x).checkpoint_min_numel
        backend = 'checkpointed' if pays else 'reference'
    if backend == 'reference':
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)


def chunked(
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    numel: int,
    backend: str = 'auto',
) -> Tensor:
    """Call a function with a few images of the batch at a time.

    On a CPU, the system takes large blocks of memory back when they are freed, and
    returning them page by page takes longer than computing what they hold.

    Args:
        function: Maps (B, ...) to (B, ...), every image independently.
        x: Argument of the function, (B, ...).
        numel: Elements that the function's largest tensor has for one image.
        backend: ``reference`` (the whole batch), ``chunked`` (as many images as have
            ``chunk_numel`` elements, see
            :class:`mmsparse.ops._devices.Settings`, at least one) or ``auto``.

    Returns:
        (B, ...).

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = resolve_backend(backend, CHUNK_BACKENDS)
    if backend == 'auto':
        backend = 'reference' if is_tracing() else 'chunked'
    if backend == 'reference':
        return function(x)
    length = images_per_chunk(x, numel)
    if length == x.shape[0]:
        return function(x)
    return torch.cat([function(chunk) for chunk in x.split(length)])


def images_per_chunk(x: Tensor, numel: int) -> int:
    """Return how many images a chunk of the device's size has.

    Args:
        x: Images, (B, ...).
        numel: Elements of the largest tensor for one image.

    Returns:
        From 1 to B; B if all images are as small together, 0 if there are none.
    """
    limit = settings_for(x).chunk_numel
    if x.shape[0] * numel <= limit:
        return x.shape[0]
    return max(int(limit // numel), 1)


def chunked_attention(
    attend: Callable[..., Tensor],
    queries: tuple[Tensor, ...],
    shared: tuple[Tensor, ...],
    length: int,
) -> Tensor:
    """Attend with a chunk of the queries at a time, each of them checkpointed.

    Large intermediate tensors, such as logits, biases and copies of keys, live as long
    as their chunk; the backward pass computes them again. Autocast is disabled within.
    There is no double backward through several chunks; a single chunk is an ordinary
    call.

    Args:
        attend: Called with a chunk of every tensor of ``queries`` and then with
            ``shared``, it returns (n, ...).
        queries: Tensors of (N, ...) that are split along their first axis.
        shared: Tensors that all chunks need; integer tensors, too.
        length: Queries of a chunk, n; the last may have fewer.

    Returns:
        (N, ...).
    """
    # Of a single chunk, the compiler decides by itself what to keep for backward.
    if is_tracing() or queries[0].shape[0] <= length:
        with no_autocast(queries[0]):
            return attend(*queries, *shared)
    return _ChunkedAttention.apply(attend, length, len(queries), *queries, *shared)


class _ChunkedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, attend: Callable, length: int, num_queries: int, *tensors: Tensor
    ) -> Tensor:
        ctx.attend, ctx.length, ctx.num_queries = attend, length, num_queries
        ctx.save_for_backward(*tensors)
        queries, shared = tensors[:num_queries], tensors[num_queries:]
        with no_autocast(queries[0]):
            return torch.cat([attend(*x, *shared) for x in _split(queries, length)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs_grad = ctx.needs_input_grad[3:]
        queries_need = needs_grad[: ctx.num_queries]
        saved = ctx.saved_tensors  # activation checkpointing allows one access
        queries = saved[: ctx.num_queries]
        # Leaves of the graphs of all chunks: their gradients accumulate in .grad.
        shared = _leaves(saved[ctx.num_queries :], needs_grad[ctx.num_queries :])
        gradients = []
        for chunk, chunk_grad in zip(
            _split(queries, ctx.length), grad.split(ctx.length), strict=True
        ):
            chunk = _leaves(chunk, queries_need)
            with torch.enable_grad(), no_autocast(grad):
                out = ctx.attend(*chunk, *shared)
            torch.autograd.backward(out, chunk_grad)
            gradients.append([x.grad for x in chunk])
        joined = (
            torch.cat(chunks) if needed else None
            for chunks, needed in zip(
                zip(*gradients, strict=True), queries_need, strict=True
            )
        )
        return (None, None, None, *joined, *(x.grad for x in shared))


def _split(tensors: Iterable[Tensor], length: int) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(x.split(length) for x in tensors), strict=True)


def _leaves(tensors: Iterable[Tensor], need_grad: Iterable[bool]) -> tuple[Tensor, ...]:
    """Return the same values as leaves of a new graph."""
    return tuple(
        x.detach().requires_grad_(needed)
        for x, needed in zip(tensors, need_grad, strict=True)
    )
