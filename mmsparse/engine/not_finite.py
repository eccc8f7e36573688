"""Find NaN and infinite values in a model and in what it computes."""

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


def bad_weights(model: nn.Module) -> list[str]:
    """Return the names of the parameters with NaN or infinite values."""
    return [name for name, x in model.named_parameters() if not _is_finite(x)]


def first_bad_module(model: nn.Module, step: Callable[[], Any]) -> str:
    """Return the name of the first module with a NaN or infinite output, '' if none.

    ``step`` computes a forward pass, without gradients, and may fail.
    """
    names = {module: name for name, module in model.named_modules() if name}
    bad = []

    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        if not bad and module in names and not all(map(_is_finite, _tensors(output))):
            bad.append(names[module])

    hook = register_module_forward_hook(check)
    try:
        with torch.no_grad(), suppress(Exception):
            step()
    finally:
        hook.remove()
    return bad[0] if bad else ''


def first_bad_variable(error: Exception) -> str:
    """Return the first variable with NaN predictions where an error passed.

    Infinite values are none: DETRs mark padding by them. Nor are tensors without a
    gradient, which may be uninitialized.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for name, value in frame.f_locals.items():
            if any(x.requires_grad and x.isnan().any() for x in _tensors(value)):
                return f'{name} of {frame.f_code.co_name}'
    return ''


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _is_finite(x: Tensor) -> bool:
    return bool(x.isfinite().all())
