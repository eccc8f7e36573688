"""Scaled dot-product attention with a bias on the logits."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import (
    is_exporting,
    is_symbolic,
    is_tracing,
    is_transforming,
    resolve_backend,
)
from mmsparse.ops._devices import settings_for
from mmsparse.ops._precision import autocast_enabled, no_autocast, precise_dtype

BACKENDS = ('auto', 'reference', 'math', 'sdpa')


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    backend: str = 'auto',
    scale: float | None = None,
) -> Tensor:
    """Compute scaled dot-product attention with a bias added to the logits.

    Args:
        q: Queries, (..., N, D).
        k: Keys, (..., M, D).
        v: Values, (..., M, D).
        bias: Broadcasts to (..., N, M); -inf masks a key. None adds nothing.
        backend: ``reference``; ``math``, the same in fewer operations; ``sdpa``,
            torch's fused kernels; or ``auto``.
        scale: Factor on the dot products of queries and keys; D**-0.5 if None.

    Returns:
        (..., N, D).

    Raises:
        ValueError: ``backend`` is unknown, or it is ``math`` and the tensors are
            float16 (logits of more than 65504 would be infinite) or their dtypes
            differ.
    """
    backend = resolve_backend(backend, BACKENDS)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    if backend == 'auto':
        backend = _choose_backend(q, k, bias)
    if backend == 'reference':
        return _reference(q, k, v, bias, scale)
    if backend == 'math':
        return _math(q, k, v, bias, scale)
    if bias is not None:
        # Fused kernels need a bias with as many axes as q has, and of its dtype.
        bias = bias[(None,) * (q.ndim - bias.ndim)].to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _choose_backend(q: Tensor, k: Tensor, bias: Tensor | None) -> str:
    unfused = 'math' if _suits_math(q, bias) else 'reference'
    # The output of a fused kernel has another memory layout than ONNX gives to it, and
    # torch.func has no rule for that of the CPU.
    if is_exporting() or is_transforming():
        return unfused
    if q.device.type != 'cpu' or q.dtype == torch.float16:
        return 'sdpa'
    # No fused kernel of the CPU computes the gradient of a bias.
    learned = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    if torch.jit.is_tracing():  # with or without gradients
        learned = bias is not None
    if learned or _is_small(q, k):
        return unfused
    return 'sdpa'


def _is_small(q: Tensor, k: Tensor) -> bool:
    """Return whether there are so few logits that a fused kernel does not pay."""
    settings = settings_for(q)
    queries, keys = q.shape[-2], k.shape[-2]
    if is_symbolic(queries, keys):
        return False
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    if trains or is_tracing():  # a graph is the same with and without gradients
        limit = settings.math_max_logits
    else:
        limit = settings.math_max_logits_inference
    return queries * keys <= limit


def _suits_math(q: Tensor, bias: Tensor | None) -> bool:
    one_dtype = bias is None or bias.dtype == q.dtype
    return one_dtype and q.dtype != torch.float16


def _reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    logits = attention_logits(q, k, scale)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1).to(v.dtype) @ v


def attention_logits(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Compute scaled dot products of queries and keys, in float32 at least.

    Args:
        q: (..., N, D).
        k: (..., M, D).
        scale: Factor on the dot products.

    Returns:
        (..., N, M).
    """
    dtype = precise_dtype(q)
    with no_autocast(q):
        return scale * q.to(dtype) @ k.to(dtype).transpose(-2, -1)


def _math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Compute the reference with scale and bias inside the first matrix product."""
    if not _suits_math(q, bias):
        dtypes = [x.dtype for x in (q, bias) if x is not None]
        raise ValueError(
            "backend='math' needs q and bias of one dtype, which is not float16; got "
            f"{' and '.join(map(str, dtypes))}. Use backend='auto'."
        )
    shape = (*q.shape[:-1], k.shape[-2])  # (..., N, M)
    q, k, value = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    if bias is not None:
        bias = bias.expand(shape)
    if _needs_plain_operations(q):
        out = _softmax(_logits(q, k, bias, scale)) @ value
    else:
        out, _ = _MathAttention.apply(q, k, value, bias, scale)
    return out.view(*shape[:-1], v.shape[-1])


def _needs_plain_operations(q: Tensor) -> bool:
    """Return whether autograd, if it records at all, must see single operations."""
    if not torch.is_grad_enabled() or is_tracing():
        return True
    return q.is_meta or autocast_enabled(q.device.type)  # meta has no autocast


def _logits(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Compute the logits of q (n, N, D) and k (n, M, D) with a bias (..., N, M)."""
    k = k.transpose(1, 2)
    if bias is None:
        return torch.baddbmm(q.new_empty(()), q, k, beta=0, alpha=scale)  # not read
    if _keeps_intermediates():
        return torch.baddbmm(bias.reshape(-1, *bias.shape[-2:]), q, k, alpha=scale)
    logits = q.new_empty(bias.shape).copy_(bias).view(-1, *bias.shape[-2:])
    return logits.baddbmm_(q, k, alpha=scale)


def _softmax(logits: Tensor) -> Tensor:
    """Compute the softmax, in place where no gradient or graph needs the logits.

    On a CPU, allocating as many elements again takes as long as the softmax.
    """
    if _keeps_intermediates():
        return logits.softmax(dim=-1)
    return torch.softmax(logits, dim=-1, out=logits)


def _keeps_intermediates() -> bool:
    """Return whether a gradient or a graph needs what could be overwritten."""
    return torch.is_grad_enabled() or is_tracing()


class _MathAttention(torch.autograd.Function):
    """Softmax of the logits times v, with few passes over the logits, and its weights.

    Measured for 784 heads of regions of 64 tokens, and for 1568 of 16 that attend to
    64, it takes 0.72 and 0.8 of the time of autograd: the softmax is in place, the
    scale is part of matrix products, and the gradient of k is not transposed. The
    weights are an output so that gradients of gradients reach the inputs through them;
    nothing else of their size is kept.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        weights = _softmax(_logits(q, k, bias, scale))
        ctx.save_for_backward(q, k, v, weights)
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.bias_shape = scale, None if bias is None else bias.shape
        return weights @ v, weights

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, weights_grad: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        needs_q, needs_k, needs_v, needs_bias, _ = ctx.needs_input_grad
        if grad is None and weights_grad is None:
            return (None,) * 5
        v_grad = None
        if grad is not None:
            v_grad = weights.transpose(1, 2) @ grad if needs_v else None
            through_out = grad @ v.transpose(1, 2)
            weights_grad = (
                through_out if weights_grad is None else through_out + weights_grad
            )
        logits_grad = torch.ops.aten._softmax_backward_data(
            weights_grad, weights, -1, weights.dtype
        )
        start = q.new_empty(())  # not read
        q_grad, k_grad = (
            torch.baddbmm(start, x, y, beta=0, alpha=ctx.scale) if needed else None
            for x, y, needed in (
                (logits_grad, k, needs_q),
                (logits_grad.transpose(1, 2), q, needs_k),
            )
        )
        bias_grad = logits_grad.view(ctx.bias_shape) if needs_bias else None
        return q_grad, k_grad, v_grad, bias_grad, None


def full_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    bias: Tensor | None = None,
    backend: str = 'auto',
    scale: float | None = None,
) -> Tensor:
    """Attend from every token of a feature map to every token of another.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H', W', C).
        v: Values, (B, H', W', C).
        num_heads: Number of heads; divides C.
        bias: Added to the logits, broadcasts to (B, heads, H * W, H' * W').
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`biased_attention`.
        scale: Factor on the dot products of queries and keys; (C / heads)**-0.5 if
            None.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The heads do not divide C, or ``backend`` is unknown or cannot
            compute it.
    """
    size = q.shape[1:3]
    q, k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (q, k, v))
    out = biased_attention(q, k, v, bias, backend, scale)  # (B, heads, H * W, D)
    return merge_heads(out).unflatten(1, size)


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """Split the channels into heads.

    Args:
        tokens: (..., N, C).
        num_heads: Number of heads; divides C.

    Returns:
        (..., heads, N, C / heads).

    Raises:
        ValueError: ``num_heads`` does not divide C.
    """
    if num_heads < 1 or tokens.shape[-1] % num_heads:
        raise ValueError(
            f'num_heads must divide the channels, {tokens.shape[-1]}; got {num_heads}.'
        )
    return tokens.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(tokens: Tensor) -> Tensor:
    """Concatenate the channels of the heads; the inverse of :func:`split_heads`.

    Args:
        tokens: (..., heads, N, C / heads).

    Returns:
        (..., N, C).
    """
    return tokens.transpose(-3, -2).flatten(-2)
