"""Attention of every query to every key, with a bias on the logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import is_exporting, pick_backend
from mmsparse.ops._precision import no_autocast, precise_type

BACKENDS = ('auto', 'reference', 'math', 'sdpa')
# Queries times keys up to which, on a CPU, plain products are faster forward and
# backward: measured, they took a third of the time at 16x16, two thirds at 64x64, all
# of it at 196x196 and 1.7 times it at 273x273.
SMALL = 64 * 64


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    backend: str = 'auto',
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention with a bias that is added to the logits.

    Args:
        q: Queries, (..., N, D).
        k: Keys, (..., M, D).
        v: Values, (..., M, D).
        bias: Broadcasts to (..., N, M); -inf takes a key away. None adds nothing.
        backend: How to compute it: ``reference``, ``products`` (the same in fewer
            steps), ``sdpa`` or ``auto``.
        scale: Factor on the products of queries and keys; D**-0.5 if None.

    Returns:
        (..., N, D).

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = pick_backend(backend, BACKENDS)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    # Fused kernels lay their result out as ONNX's products do not.
    if backend == 'auto' and is_exporting():
        backend = 'math'
    halves = q.dtype == torch.float16  # logits of more than 65504 would be infinite
    if backend == 'auto' and q.device.type == 'cpu' and not halves:
        plain = q.shape[-2] * k.shape[-2] <= SMALL or _learned(bias)
        backend = 'math' if plain else 'sdpa'
    alike = bias is None or bias.dtype == q.dtype
    if backend == 'math' and alike and not halves:
        return _products(q, k, v, bias, scale)
    if backend in ('reference', 'math'):
        return _reference(q, k, v, bias, scale)
    if bias is not None:
        # The fused kernels want as many axes as q has, and its type.
        bias = bias[(None,) * (q.ndim - bias.ndim)].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _learned(bias: Tensor | None) -> bool:
    """Whether the bias wants a gradient, which no fused kernel of the CPU gives."""
    return bias is not None and bias.requires_grad and torch.is_grad_enabled()


def _reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    logits = attention_logits(q, k, scale)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1).to(v.dtype) @ v


def attention_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Scaled products of queries and keys, in single precision at least.

    Args:
        q: (..., N, D).
        k: (..., M, D).
        scale: Factor on the products.

    Returns:
        (..., N, M).
    """
    kind = precise_type(q)
    with no_autocast(q):
        return scale * q.to(kind) @ k.to(kind).transpose(-2, -1)


def _products(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The reference with scale and bias within the first product."""
    shape = (*q.shape[:-1], k.shape[-2])
    q, k, value = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    if bias is None:
        start, added = q.new_empty(()), 0  # not read
    else:
        start, added = bias.expand(shape).reshape(-1, *shape[-2:]), 1
    logits = torch.baddbmm(start, q, k.transpose(1, 2), beta=added, alpha=scale)
    return (logits.softmax(dim=-1) @ value).view(*shape[:-1], v.shape[-1])


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Give every head its own axis.

    Args:
        tokens: (..., N, C).
        num_heads: Number of heads; divides C.

    Returns:
        (..., heads, N, C / heads).

    Raises:
        ValueError: ``num_heads`` does not divide C.
    """
    if tokens.shape[-1] % num_heads:
        raise ValueError(
            f'The number of heads must divide the channels, {tokens.shape[-1]}; '
            f'got {num_heads}.'
        )
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Line the heads up in the channels; the inverse of :func:`split_heads`.

    Args:
        tokens: (..., heads, N, C / heads).

    Returns:
        (..., N, C).
    """
    return tokens.transpose(-3, -2).flatten(-2)
