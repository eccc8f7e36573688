"""MLP of a block on a CPU: fewer passes over its hidden features, and less to keep."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from mmsparse.ops._backend import is_tracing, resolve_backend
from mmsparse.ops._chunking import images_per_chunk
from mmsparse.ops._depthwise import convolve, depthwise_gradients, with_identity
from mmsparse.ops._devices import settings_for
from mmsparse.ops._double_backward import differentiable_gradients
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops._linear import ONEDNN, linear_map, suits_convolution
from mmsparse.ops._precision import autocast_enabled

Affine = tuple[Tensor, Tensor | None]  # weight and bias
# torch.compile fuses by this operator; it is neither documented nor on all platforms.
_CONVOLVE_AND = getattr(torch.ops.mkldnn, '_convolution_pointwise', None)


def suits_fused_mlp(x: Tensor, weight1: Tensor, weight2: Tensor) -> bool:
    """Return whether :func:`fused_mlp` can run, and pays.

    That is in single precision on a CPU. For a backward pass, small hidden features
    need not be computed again. Modes that see every operation, as those that count
    FLOPs, see the usual ones.

    Args:
        x: Feature map, (B, C, H, W).
        weight1: Weight of the first linear layer, (C', C).
        weight2: Weight of the second, (C'', C').

    Returns:
        Whether to call it.
    """
    return (
        resolve_backend('auto', ('auto', 'reference')) == 'auto'
        and not is_tracing()
        and _CONVOLVE_AND is not None
        and ONEDNN
        and torch._C._get_mkldnn_enabled()
        and all(y.is_cpu and y.dtype == torch.float32 for y in (x, weight1, weight2))
        and not autocast_enabled('cpu')
        and _get_current_dispatch_mode() is None
        and x.numel() > 0  # oneDNN needs an image
        and not (
            torch.is_grad_enabled()
            and x[:, 0].numel() * len(weight1) < settings_for(x).checkpoint_min_numel
        )
    )


def fused_mlp(
    x: Tensor,
    fc1: Affine,
    fc2: Affine,
    conv: Affine | None = None,
    residual: bool = False,
) -> Tensor:
    """Compute a linear layer, a depthwise convolution, GELU and a linear layer.

    A few images at a time, so that hidden features stay in caches. oneDNN applies GELU
    to what it has just computed. For the backward pass the result of the first layer is
    kept; what follows it is computed again.

    Args:
        x: Feature map, (B, H, W, C), float32 on a CPU.
        fc1: Weight (C', C) and bias of the first linear layer.
        fc2: Weight (C'', C') and bias of the second.
        conv: Kernels (C', 1, k, k') and bias of the convolution, None for none.
        residual: Add the hidden features to their convolution.

    Returns:
        (B, H, W, C'').
    """
    kernels, kernel_bias = conv or (None, None)
    if kernels is not None and residual:
        kernels = with_identity(kernels)
    weights = (*fc1, kernels, kernel_bias, *fc2)
    if torch.is_grad_enabled() and any(
        y is not None and y.requires_grad for y in (x, *weights)
    ):
        return _FusedMlp.apply(x, *weights)
    return _join(_infer(chunk, *weights) for chunk in _chunks(x, fc1[0]))


def _chunks(x: Tensor, weight1: Tensor) -> Iterator[Tensor]:
    """Split the images so that the hidden features of a chunk are small."""
    hidden_numel = x.shape[1] * x.shape[2] * weight1.shape[0]  # of one image
    return iter(x.split(images_per_chunk(x, hidden_numel)))


def _join(chunks: Iterable[Tensor]) -> Tensor:
    first, *others = chunks
    return torch.cat([first, *others]) if others else first


def _infer(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    kernels: Tensor | None,
    kernel_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    if kernels is not None:
        hidden = linear_map(x, weight1, bias1)
        active = _convolve_gelu(hidden, kernels, kernel_bias)
    elif suits_convolution(x):
        active = _convolve_gelu(x, weight1[:, :, None, None], bias1)
    else:
        hidden = linear_map(x, weight1, bias1)
        active = torch.ops.aten.gelu_(hidden)
    return linear_map(active, weight2, bias2)


def _convolve_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve every channel separately, or all with a 1x1 kernel, and apply GELU."""
    assert _CONVOLVE_AND is not None
    padding = [length // 2 for length in weight.shape[-2:]]
    groups = x.shape[-1] // weight.shape[1]
    once = [1, 1]  # stride and dilation
    first = (channels_first(x), weight, bias, padding, once, once, groups)
    return channels_last(_CONVOLVE_AND(*first, 'gelu', [], 'none'))


class _FusedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        kernels: Tensor | None,
        kernel_bias: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
    ) -> Tensor:
        hidden, outs = [], []
        for chunk in _chunks(x, weight1):
            h = linear_map(chunk, weight1, bias1)
            if kernels is None:
                y = F.gelu(h)
            else:
                y = _convolve_gelu(h, kernels, kernel_bias)
            outs.append(linear_map(y, weight2, bias2))
            hidden.append(h)
        ctx.save_for_backward(
            x, weight1, bias1, kernels, kernel_bias, weight2, bias2, *hidden
        )
        return _join(outs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # activation checkpointing allows one access
        inputs, hidden = saved[:7], saved[7:]
        if torch.is_grad_enabled():  # of this gradient, too
            return differentiable_gradients(
                _reference, inputs, ctx.needs_input_grad, grad
            )
        x, weight1, _, kernels, kernel_bias, weight2, _ = inputs
        # 1. Gradients of the parameters are summed over the chunks.
        sums = [
            torch.zeros_like(y) if needed and y is not None else None
            for y, needed in zip(inputs[1:], ctx.needs_input_grad[1:], strict=True)
        ]
        linear1_sums, kernel_sums, linear2_sums = sums[:2], sums[2:4], sums[4:]
        needs_x, needs_hidden = ctx.needs_input_grad[0], any(ctx.needs_input_grad[:5])
        kernel_needs = (any(ctx.needs_input_grad[:3]), *ctx.needs_input_grad[3:5])
        length = len(hidden[0])
        x_grads = []
        for h, chunk, out_grad in zip(
            hidden, x.split(length), grad.contiguous().split(length), strict=True
        ):
            # 2. Compute what follows the first layer again.
            u = h
            if kernels is not None:
                u = channels_last(convolve(channels_first(h), kernels, kernel_bias))
            # 3. Go back through the second layer and GELU.
            _add_linear_gradients(linear2_sums, out_grad, F.gelu(u))
            if not needs_hidden:
                continue
            u_grad = linear_map(out_grad, weight2.t())
            h_grad = torch.ops.aten.gelu_backward.grad_input(
                u_grad, u, grad_input=u_grad
            )
            # 4. Go back through the convolution and the first layer.
            if kernels is not None:
                gradients = depthwise_gradients(
                    channels_first(h_grad), channels_first(h), kernels, kernel_needs
                )
                _add(kernel_sums, gradients[1:])
                if gradients[0] is None:
                    continue
                h_grad = channels_last(gradients[0])
            _add_linear_gradients(linear1_sums, h_grad, chunk)
            if needs_x:
                x_grads.append(linear_map(h_grad, weight1.t()))
        return _join(x_grads) if needs_x else None, *sums


def _add_linear_gradients(
    sums: Sequence[Tensor | None], grad: Tensor, x: Tensor
) -> None:
    """Add the gradients of weight and bias of a linear layer to their sums.

    By a matrix product. Measured, it takes 0.7 of the time of oneDNN's gradients of a
    1x1 convolution at 56x56 tokens, and as long at 14x14.
    """
    weight, bias = sums
    grad, x = grad.flatten(0, 2), x.flatten(0, 2)  # (N, C'), (N, C)
    if weight is not None:
        weight.addmm_(grad.t(), x)
    if bias is not None:
        bias.add_(grad.sum(0))


def _add(sums: Sequence[Tensor | None], terms: Sequence[Tensor | None]) -> None:
    for total, term in zip(sums, terms, strict=True):
        if total is not None and term is not None:
            total.add_(term)


def _reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    kernels: Tensor | None,
    kernel_bias: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
) -> Tensor:
    h = F.linear(x, weight1, bias1)
    if kernels is not None:
        h = channels_last(convolve(channels_first(h), kernels, kernel_bias))
    return F.linear(F.gelu(h), weight2, bias2)
