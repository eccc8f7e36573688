"""The weights of a model within an official checkpoint."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmsparse.checkpoint.detectors import Detector
from mmsparse.checkpoint.families import BACKBONE, DETECTORS, FAMILIES, Family
from mmsparse.checkpoint.files import read_checkpoint
from mmsparse.checkpoint.names import listed
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


def find_family(keys: Collection[str], name: str | None) -> Family | Detector:
    """Recognise the family of a state dict.

    Args:
        keys: Its keys.
        name: Name of the family, if it is known.

    Returns:
        The family.

    Raises:
        ValueError: The name is unknown, or the keys are not those of such a family.
    """
    known: dict[str, Family | Detector] = {**DETECTORS, **FAMILIES}
    if name is not None and name not in known:
        raise ValueError(f'family must be one of {sorted(known)}; got {name!r}.')
    families = known.values() if name is None else [known[name]]
    fitting = [family for family in families if family.prefix(keys) is not None]
    if not fitting:
        raise ValueError(
            f'The keys are not those of {" or ".join(f.name for f in families)}; they '
            f'begin with {list(keys)[:3]}.'
        )
    return fitting[0]


def find_model(
    weights: Mapping[str, Tensor], family: Family | Detector, backbone_only: bool
) -> dict[str, Tensor]:
    """Take the family's model out of a state dict, without prefix.

    Args:
        weights: The state dict.
        family: Its family.
        backbone_only: Leave out what is not the backbone.

    Returns:
        The weights of the backbone, and of the classifier's head if there is one; all
        of those of a detector.

    Raises:
        ValueError: There is more than that or a segmentor's heads, and it is not to be
            left out.
    """
    prefix = family.prefix(weights)
    others = [key for key in weights if not key.startswith(prefix)]
    if not isinstance(family, Detector) and find_heads(weights, family):
        root = prefix.removesuffix(BACKBONE)
        others = [key for key in others if not key.startswith(root)]
    # What a pretraining method has beside its encoder is of no use afterwards.
    if others and not backbone_only and not prefix.endswith('encoder.'):
        raise ValueError(
            f'Beside what begins with {prefix!r} the checkpoint holds what is not '
            f'converted: {listed(others)}. backbone_only leaves it out.'
        )
    model = _below(weights, prefix)
    if not backbone_only or isinstance(family, Detector):
        return model
    head = f'{family.head}.'
    return {key: value for key, value in model.items() if not key.startswith(head)}


def find_heads(weights: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Take what a segmentor has around its backbone out of a state dict.

    Args:
        weights: The state dict.
        family: Its family.

    Returns:
        All that stands beside the backbone, by the names of mmsegmentation; nothing
        if the model is no segmentor.
    """
    prefix = family.prefix(weights)
    if not prefix.endswith(BACKBONE):
        return {}
    beside = {k: x for k, x in weights.items() if not k.startswith(prefix)}
    heads = _below(beside, prefix.removesuffix(BACKBONE))
    return heads if any(name.startswith('decode_head.') for name in heads) else {}


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }
