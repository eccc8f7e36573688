"""State dicts: found in a checkpoint, checked, and compared with a model."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsparse.checkpoint.files import read_checkpoint
from mmsparse.errors import UsageError

WRAPPERS = ('state_dict', 'model')
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FRACTIONS = ('.weight', '.bias')  # what is called so is no index


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a checkpoint; no code of the file runs.

    Args:
        path: The file, of torch or safetensors.

    Returns:
        Its tensors.

    Raises:
        UsageError: The file cannot be read, or has no state dict of finite numbers;
            names it.
    """
    content = read_checkpoint(path)
    try:
        return find_state_dict(content)
    except ValueError as error:
        raise UsageError(f'{path}: {error}') from error


def find_state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """Take the state dict out of a checkpoint.

    Args:
        checkpoint: The state dict, or a dict with one under one of :data:`WRAPPERS`.

    Returns:
        Its tensors.

    Raises:
        ValueError: There is no state dict, or :func:`check_weights` refuses it.
    """
    content = checkpoint
    while isinstance(content, Mapping):
        wrapper = next((name for name in WRAPPERS if name in content), None)
        if wrapper is None:
            weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
            if weights:
                _check_names(content)
                check_weights(weights)
                return weights
            break
        content = content[wrapper]
    is_dict = isinstance(checkpoint, Mapping)
    names = listed(list(map(repr, checkpoint))) if is_dict else ''
    found = f'[{names}]' if is_dict else f'{checkpoint!r:.80}'
    raise ValueError(
        f'The checkpoint must be a state dict, or a dict with one under '
        f'{" or ".join(map(repr, WRAPPERS))}; got {found} and no tensors there.'
    )


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the weights are numbers that a model can have.

    Args:
        weights: A state dict.

    Raises:
        ValueError: One is infinite, no number, or of another kind than fractions and
            whole numbers are; names its key.
    """
    for key, tensor in weights.items():
        if not isinstance(key, str):
            raise ValueError(f'A tensor must have a name; got {key!r}.')
        kinds = FLOATS if key.endswith(FRACTIONS) else FLOATS + WHOLE
        if tensor.dtype not in kinds:
            names = ', '.join(str(kind).removeprefix('torch.') for kind in kinds)
            raise ValueError(
                f'{key} is of {tensor.dtype}; it must be one of {names}. Convert it '
                f'before it is saved.'
            )
        if tensor.is_meta:  # has a shape alone
            continue
        if bad := tensor.numel() - int(tensor.isfinite().sum()):
            raise ValueError(
                f'{key}: {bad} of {tensor.numel()} numbers are infinite or NaN. '
                f'Take a checkpoint from before the training failed, or get the file '
                f'once more.'
            )


def _check_names(content: Mapping[Any, Any]) -> None:
    for key, value in content.items():
        named = isinstance(key, str) and key.endswith(FRACTIONS)
        if named and not isinstance(value, Tensor):
            raise ValueError(f'{key} must be a tensor; got {value!r:.80}.')


def find_prefix(names: Collection[str], marker: str) -> str | None:
    """Find what stands before the names of a model, ``module.`` for example.

    Args:
        names: Names of a state dict.
        marker: Regular expression of the start of some names of the model.

    Returns:
        The prefix, mostly empty; None if there are no such names.
    """
    for name in names:
        if found := re.search(rf'(^|(?<=\.)){marker}', name):
            return name[: found.start()]
    return None


def listed(names: Collection[str], shown: int = 20) -> str:
    """List names in a message.

    Args:
        names: The names.
        shown: How many of them at most.

    Returns:
        The names, and the number of those left out.
    """
    text = ', '.join(list(names)[:shown])
    return f'{text} and {len(names) - shown} more' if len(names) > shown else text
