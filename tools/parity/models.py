"""Run a model on a case: record its modules, compare outputs and gradients."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmsparse.models.layers.common import DepthwiseConv2d
from parity.cases import Case, Comparison, UnsupportedCaseError

Arguments = Mapping[str, Any]
State = dict[str, Tensor]
INDICES = ('routing.', 'routing_idx')  # of routed regions, in any order


class Call(NamedTuple):
    """The last call of a module: its arguments and what it returned."""

    args: tuple
    kwargs: dict[str, Any]
    output: Any


@contextmanager
def recorded(model: nn.Module) -> Iterator[dict[str, Call]]:
    """Record the calls of all modules of a model.

    Args:
        model: The model, run inside the context.

    Yields:
        The last call of every module, by its name without ``backbone.``, in the order
        of the calls. The output of a residual convolution is without the residual.
    """
    calls: dict[str, Call] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            if isinstance(module, DepthwiseConv2d) and module.residual:
                output = output - args[0]
            calls[name] = Call(args, kwargs, output)

        return hook

    handles = [
        module.register_forward_hook(
            record(name.removeprefix('backbone.')), with_kwargs=True
        )
        for name, module in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def compare_model(
    case: Case,
    model: nn.Module,
    state: State,
    convert: Callable[[State], State],
    name_outputs: Callable[[Any, dict[str, Call]], dict[str, Tensor]],
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
) -> list[Comparison]:
    """Run a model on the input of a case and compare everything that is stored.

    Args:
        case: The case; has one ``input`` and perhaps a cotangent of ``output``.
        model: The model of mmsparse.
        state: The official state dict.
        convert: Converts the official state dict, or gradients of it.
        name_outputs: Names the outputs of the model and of its modules as the case
            does. A cotangent belongs to ``output``.
        prepare: Converts the layout of the input.

    Returns:
        One comparison for each stored output and gradient.
    """
    model.eval().load_state_dict(convert(state))
    x = case.tensors['input'].clone().requires_grad_()
    with recorded(model) as calls:
        y = model(prepare(x))
    named = name_outputs(y, calls)
    comparisons = [
        case.compare(name, named[name], as_sets=name.startswith(INDICES))
        for name in case.outputs
    ]
    cotangent = case.tensors.get('cotangent', case.tensors.get('grad_y'))
    if cotangent is not None:
        (named['output'] * cotangent).sum().backward()
        gradients = case.with_prefix('grad.')
        expected = {'input': gradients.pop('input')}
        expected |= convert({k.removeprefix('state.'): x for k, x in gradients.items()})
        leaves = dict(model.named_parameters(), input=x)
        for key, gradient in expected.items():
            actual = leaves[key].grad
            actual = torch.zeros_like(leaves[key]) if actual is None else actual
            comparisons.append(case.compare(f'grad.{key}', actual, gradient))
    return comparisons


def summarize(name: str, x: Tensor) -> dict[str, Tensor]:
    """Name a feature map and its mean, deviation and first elements."""
    tokens = x.flatten(2)  # (B, C, N)
    return {
        name: x,
        f'{name}_mean': tokens.mean(-1),
        f'{name}_std': tokens.std(-1, correction=0),
        f'{name}_first': tokens[:, :16, :16],
    }


def in_classifier(convert: Callable[[State], State], head: str) -> Callable:
    """Extend the conversion of a backbone to :class:`Classifier`.

    Args:
        convert: Converts the state dict of the backbone.
        head: Official name of the linear layer.

    Returns:
        A function that converts the state dict of the classifier.
    """

    def convert_all(state: State) -> State:
        heads = {k: x for k, x in state.items() if k.startswith(f'{head}.')}
        rest = convert({k: x for k, x in state.items() if k not in heads})
        return {
            **{f'backbone.{key}': tensor for key, tensor in rest.items()},
            **{k.replace(f'{head}.', 'head.fc.'): x for k, x in heads.items()},
        }

    return convert_all


def choose(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """Look up the value of an official argument, or raise UnsupportedCaseError."""
    if value not in choices:
        raise UnsupportedCaseError(f'{name}={value!r}')
    return choices[value]
