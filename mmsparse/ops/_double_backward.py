"""Gradients of gradients, for autograd functions with a hand-written backward."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiable_gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a function by operations that have gradients, too.

    Args:
        function: The same function in plain operations.
        inputs: Its arguments, None for one that is left out.
        needed: Whether the gradient of each of them is needed.
        grad: Gradient of its result.

    Returns:
        The gradients, None where they are not needed.
    """
    pairs = zip(inputs, needed, strict=True)
    variables = [x for x, need in pairs if need and x is not None]
    out = function(*inputs)
    gradients = iter(torch.autograd.grad(out, variables, grad, create_graph=True))
    return tuple(next(gradients) if need else None for need in needed)
