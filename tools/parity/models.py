"""What the cases of several families need: a classifier, looking inside, gradients."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mmsparse.models.layers.common import DepthwiseConv2d
from parity.cases import Case, Comparison


@contextmanager
def recorded_outputs(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Note what every part of a model returns.

    Args:
        model: The model, run inside the context.

    Yields:
        The last output of every module that ran, by its name without ``backbone.``, in
        the order of the runs; a depthwise convolution's without the map that it adds.
    """
    outputs: dict[str, Any] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            adds = isinstance(module, DepthwiseConv2d) and module.residual
            outputs[name] = output - inputs[0] if adds else output

        return hook

    handles = [
        module.register_forward_hook(note(name.removeprefix('backbone.')))
        for name, module in model.named_modules()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def gradient_comparisons(
    case: Case, x: Tensor, model: nn.Module, expected: Mapping[str, Tensor]
) -> list[Comparison]:
    """Pair the gradients of a model and of its input with the official ones.

    Args:
        case: The case.
        x: The input after the backward pass.
        model: The model after the backward pass.
        expected: The official gradients by our keys and in our shapes.

    Returns:
        One comparison for the input and for each of ``expected``.
    """
    tolerance = case.info['tolerance']
    limits = tolerance['grad_atol'], tolerance['grad_rtol']
    parameters = dict(model.named_parameters())
    return [
        Comparison('grad.input', x.grad, case.tensors['grad.input'], *limits),
        *(
            Comparison(f'grad.{key}', parameters[key].grad, gradient, *limits)
            for key, gradient in expected.items()
        ),
    ]
