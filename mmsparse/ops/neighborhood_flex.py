"""Neighborhood attention by torch's FlexAttention, which compiles it for a GPU.

Bias and mask are functions of the indices of query and key, which the compiler builds
into a kernel of attention. A mask by block says which blocks of keys it can skip. The
kernel is compiled again for another kernel size and, until torch takes the sizes as
dynamic, for another size of the feature map.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mmsparse.ops._backend import is_tracing
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops.attention import merge_heads, split_heads

VERSION = tuple(map(int, torch.__version__.split('.')[:2]))
MIN_HEAD_DIM = 16  # channels of a head that the compiled kernel needs


def attend(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Attend from every token to its neighbors.

    On a CPU, it is not compiled and keeps all logits: for tests of its values.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        table: Relative position bias, (heads, 2 * kernel - 1, 2 * kernel - 1). On a
            GPU, its gradient is summed in no fixed order.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: torch is too old, a head has too few channels, or a gradient is
            needed on a CPU.
    """
    _check(q, k, v, table)
    (height, width), kernel = q.shape[1:3], (table.shape[-1] + 1) // 2
    if q.is_cpu:  # torch checks requires_grad even if gradients are disabled
        q, k, v, table = (x.detach() for x in (q, k, v, table))

    def add_bias(
        logit: Tensor, _: Tensor, head: Tensor, q: Tensor, k: Tensor
    ) -> Tensor:
        # Keys that are not near are masked afterwards: their entry must only exist.
        row = k // width - q // width + kernel - 1
        column = k % width - q % width + kernel - 1
        row, column = (x.clamp(0, 2 * kernel - 2) for x in (row, column))
        return logit + table[head, row, column]

    q, k, v = (split_heads(x.flatten(1, 2), len(table)) for x in (q, k, v))
    mask = _block_mask(height, width, kernel, q.device)
    out = _function('flex_attention', q.is_cuda)(q, k, v, add_bias, mask)
    return merge_heads(out).unflatten(1, (height, width))


def is_available(q: Tensor, table: Tensor) -> bool:
    """Return whether FlexAttention can compute it on a GPU."""
    head_dim = q.shape[-1] // len(table)
    trained = table.requires_grad and torch.is_grad_enabled()
    return head_dim >= MIN_HEAD_DIM and _oldest_version(head_dim, trained) <= VERSION


def _oldest_version(head_dim: int, trained: bool) -> tuple[int, int]:
    """Return the first torch that computes such heads, with a gradient of the table."""
    if head_dim & (head_dim - 1):  # not a power of 2
        return (2, 7)
    return (2, 6) if trained else (2, 5)


def _check(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> None:
    """Raise ValueError if FlexAttention cannot compute it."""
    head_dim = q.shape[-1] // len(table)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, table))
    if q.is_cuda and not is_available(q, table):
        raise ValueError(
            f"backend='flex' needs heads of {MIN_HEAD_DIM} channels and torch 2.5, 2.6 "
            'for the gradient of the table, or 2.7 unless the channels are a power of '
            f"2; got {head_dim} channels and torch {torch.__version__}. Use 'auto'."
        )
    if not q.is_cuda and (trained or _oldest_version(head_dim, False) > VERSION):
        raise ValueError(
            "backend='flex' computes gradients on GPUs only, and needs torch 2.5, or "
            '2.7 unless the channels of a head are a power of 2; got tensors on '
            f'{q.device}, {head_dim} channels and torch {torch.__version__}. Use '
            "'auto', or torch.no_grad()."
        )


@cached_by_size
def _block_mask(height: int, width: int, kernel: int, device: torch.device) -> Any:
    """Build the mask of neighbors; without compiler, it needs all pairs of tokens."""

    def is_near(_: Tensor, __: Tensor, q: Tensor, k: Tensor) -> Tensor:
        rows = _is_near(q // width, k // width, height, kernel)
        return rows & _is_near(q % width, k % width, width, kernel)

    tokens = height * width
    create = _function('create_block_mask', device.type == 'cuda')
    return create(is_near, None, None, tokens, tokens, device=str(device))


def _is_near(query: Tensor, key: Tensor, length: int, kernel: int) -> Tensor:
    """Return whether query and key are neighbors along an axis."""
    first = (query - kernel // 2).clamp(0, length - kernel)
    return (first <= key) & (key < first + kernel)


def _function(name: str, on_gpu: bool) -> Callable[..., Any]:
    """Return a function of FlexAttention, compiled on a GPU unless its caller is."""
    if on_gpu and not is_tracing():
        return _compiled(name)
    from torch.nn.attention import flex_attention  # not in older versions

    return getattr(flex_attention, name)


@cache
def _compiled(name: str) -> Callable[..., Any]:
    return torch.compile(_function(name, on_gpu=False))
