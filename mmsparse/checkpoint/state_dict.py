"""Find the state dict of a checkpoint, check it, and compare it with a model."""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.checkpoint.files import read_checkpoint
from mmsparse.errors import UsageError

WRAPPERS = ('state_dict', 'model')
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOAT_SUFFIXES = ('.weight', '.bias')  # of parameters, which are never integers
SHOWN_KEYS = 10


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a file of torch or safetensors without running its code.

    UsageError names the file if it cannot be read or :func:`find_state_dict` raises.
    """
    content = read_checkpoint(path)
    try:
        return find_state_dict(content)
    except ValueError as error:
        raise UsageError(f'{path}: {error}') from error


def find_state_dict(checkpoint: Any) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint, itself or under :data:`WRAPPERS`.

    ValueError is raised if there is none, or :func:`check_weights` refuses it.
    """
    content = checkpoint
    while isinstance(content, Mapping):
        wrapper = next((name for name in WRAPPERS if name in content), None)
        if wrapper is None:
            weights = {k: v for k, v in content.items() if isinstance(v, Tensor)}
            if weights:
                _check_parameters(content)
                check_weights(weights)
                return weights
            break
        content = content[wrapper]
    is_dict = isinstance(checkpoint, Mapping)
    keys = join_keys(list(map(repr, checkpoint))) if is_dict else ''
    found = f'[{keys}]' if is_dict else f'{checkpoint!r:.80}'
    raise ValueError(
        f'The checkpoint must be a state dict, or a dict with one under '
        f'{" or ".join(map(repr, WRAPPERS))}; got {found} and no tensors there.'
    )


def check_weights(weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless a model can have these weights.

    Keys are strings; tensors are finite and have dtypes of parameters or buffers.
    """
    for key, tensor in weights.items():
        if not isinstance(key, str):
            raise ValueError(f'The key of a tensor must be a string; got {key!r}.')
        dtypes = FLOATS if key.endswith(FLOAT_SUFFIXES) else FLOATS + INTEGERS
        if tensor.dtype not in dtypes:
            allowed = ', '.join(str(x).removeprefix('torch.') for x in dtypes)
            raise ValueError(
                f'{key} has dtype {tensor.dtype}; it must be one of {allowed}. Convert '
                f'it before saving.'
            )
        if tensor.is_meta:  # has a shape, but no values
            continue
        if bad := tensor.numel() - int(tensor.isfinite().sum()):
            raise ValueError(
                f'{key}: {bad} of {tensor.numel()} elements are infinite or NaN. '
                f'Take a checkpoint from before the training failed, or download the '
                f'file again.'
            )


def _check_parameters(content: Mapping[Any, Any]) -> None:
    for key, value in content.items():
        is_parameter = isinstance(key, str) and key.endswith(FLOAT_SUFFIXES)
        if is_parameter and not isinstance(value, Tensor):
            raise ValueError(f'{key} must be a tensor; got {value!r:.80}.')


@dataclass(frozen=True)
class Mismatch:
    """Differences between a state dict and a model; falsy if there are none."""

    missing: Sequence[str] = ()  # keys of the model that the state dict lacks
    unexpected: Sequence[str] = ()  # keys of the state dict that the model lacks
    size_mismatch: Sequence[str] = ()  # keys of both, each followed by the shapes

    def __len__(self) -> int:
        return len(self.missing) + len(self.unexpected) + len(self.size_mismatch)

    def __str__(self) -> str:
        parts = {
            'missing keys': self.missing,
            'unexpected keys': self.unexpected,
            'size mismatch': self.size_mismatch,
        }
        return '; '.join(f'{kind}: {join_keys(x)}' for kind, x in parts.items() if x)


def state_dict_mismatch(
    weights: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[int]],
    name: Callable[[str], str] = str,
) -> Mismatch:
    """Compare a state dict with the tensors of a model.

    Like torch, do not miss ``num_batches_tracked`` of BatchNorm, which starts at 0.
    ``name`` is a function from a key to the name that the user's file has for it.
    """
    return Mismatch(
        missing=[
            name(key)
            for key in shapes
            if key not in weights and not key.endswith('num_batches_tracked')
        ],
        unexpected=[name(key) for key in weights if key not in shapes],
        size_mismatch=[
            f'{name(key)} {tuple(tensor.shape)} instead of {tuple(shapes[key])}'
            for key, tensor in weights.items()
            if key in shapes and tuple(tensor.shape) != tuple(shapes[key])
        ],
    )


def load_state_dict(
    model: nn.Module, weights: Mapping[str, Tensor], allow_unexpected: bool = False
) -> Mismatch:
    """Load weights into a model, and return why they do not fit, if they do not.

    The model may rename keys and resize tensors; these are no mismatch.
    """
    shapes = shapes_of(model.state_dict())
    expected = {key: x for key, x in weights.items() if key in shapes}
    mismatch = state_dict_mismatch(expected if allow_unexpected else weights, shapes)
    reported = ''
    try:
        keys = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # size mismatch
        if not mismatch:
            raise
        reported = str(error)
    else:
        if not keys.missing_keys and (allow_unexpected or not keys.unexpected_keys):
            return Mismatch()
    return replace(
        mismatch,
        size_mismatch=[
            text
            for text in mismatch.size_mismatch
            if f'size mismatch for {text.partition(" ")[0]}:' in reported
        ],
    )


def shapes_of(weights: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """Return the shape of every tensor of a state dict."""
    return {key: tensor.shape for key, tensor in weights.items()}


def tensors_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a state dict, whatever file it is stored in.

    It is that of the tensors sorted by key: of each a JSON list of key, dtype and
    shape, a line feed, and the elements in row-major order and little-endian bytes.
    """
    digest = hashlib.sha256()
    for key in sorted(weights):
        tensor = weights[key].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix('torch.')
        header = json.dumps([key, dtype, list(tensor.shape)])
        digest.update(f'{header}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def strip_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select the entries with a prefix, and remove it from their keys."""
    start = len(prefix)
    return {k[start:]: x for k, x in weights.items() if k.startswith(prefix)}


def find_prefix(keys: Collection[str], marker: str) -> str | None:
    """Return the prefix of a model's keys, ``module.`` for example; None without any.

    ``marker`` is a regular expression that matches the start of some of these keys.
    """
    for key in keys:
        if found := re.search(rf'(^|(?<=\.)){marker}', key):
            return key[: found.start()]
    return None


def join_keys(keys: Collection[str], shown: int = SHOWN_KEYS) -> str:
    """Join keys for a message: the first ones, and how many more there are."""
    text = ', '.join(list(keys)[:shown])
    more = len(keys) - shown
    return f'{text} and {more} more' if more > 0 else text
