"""What of a training's checkpoint is published: the weights, and what tells of them."""

import ast
import json
from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from mmsparse import __version__
from mmsparse.checkpoint.safe_pickle import Placeholder
from mmsparse.checkpoint.state_dict import check_weights, find_state_dict

# What the hosts read, how far the training went, and what our converter writes.
KEPT = (
    *('dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter', 'mmengine_version'),
    *('family', 'arch', 'source', 'source_sha256', 'mmsparse_version'),
)
# Settings of the place of a training.
OF_THE_PLACE = ('work_dir', 'load_from', 'resume', 'resume_from', 'launcher')
AVERAGED = 'ema_state_dict'


def published_weights(
    checkpoint: Any, ema: bool | None = None, half: bool = False
) -> dict[str, Tensor]:
    """Take the weights out of a checkpoint of mmengine.

    Args:
        checkpoint: What was read.
        ema: Whether to take the averages that ``EMAHook`` makes, or the weights
            themselves; None for what the hosts load, which are the averages if there
            are any.
        half: Store floating-point numbers in half precision.

    Returns:
        The state dict.

    Raises:
        ValueError: There are no weights or no averages, one is no finite number, or
            half precision has no room for it.
    """
    weights = find_state_dict(checkpoint)
    averaged = isinstance(checkpoint, Mapping) and AVERAGED in checkpoint
    if ema and not averaged:
        raise ValueError(f'The checkpoint has no averages ({AVERAGED!r}) to publish.')
    if ema is False and averaged:
        # EMAHook exchanges the two where it saves them.
        others = checkpoint[AVERAGED]
        weights = {key: others.get(f'module.{key}', x) for key, x in weights.items()}
        check_weights(weights)
    return {key: _half(key, x) for key, x in weights.items()} if half else weights


def _half(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise ValueError(f'{key} has numbers too large for half precision.')
    return half


def published_meta(checkpoint: Any, config: str | None = None) -> dict[str, Any]:
    """Take what tells of the weights out of a checkpoint, without a machine's paths.

    Args:
        checkpoint: What was read.
        config: Text of the configuration, where the checkpoint has none.

    Returns:
        Plain values: classes and colors, epoch and iteration, versions, and as ``cfg``
        the text of the configuration.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    kept = {'mmsparse_version': __version__, **_portable(_items(meta, KEPT))}
    text = portable_config(meta.get('cfg')) or portable_config(config)
    return {**kept, 'cfg': text} if text else kept


def as_strings(meta: Mapping[str, Any]) -> dict[str, str]:
    """Write metadata as safetensors has them; what is not a string becomes JSON.

    Args:
        meta: Plain values.

    Returns:
        Strings.
    """
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in meta.items()
    }


def portable_config(text: Any) -> str | None:
    """Take a machine's paths out of the text of a configuration, without running it.

    Args:
        text: Text of Python, as mmengine stores it.

    Returns:
        The same without the settings of :data:`OF_THE_PLACE` and with paths made
        relative; None if it is no such text.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, TypeError, ValueError):
        return None
    source = text.encode()  # columns are counted in bytes
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    for node, replacement in reversed(list(_edits(tree))):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset + (not replacement)
        source = source[:start] + replacement.encode() + source[end:]
    return source.decode()


def _edits(tree: ast.Module) -> Iterator[tuple[Any, str]]:
    """What is replaced in the text, in its order."""
    for statement in tree.body:
        if _names(statement) & set(OF_THE_PLACE):
            yield statement, ''
            continue
        paths = (
            node
            for node in ast.walk(statement)
            if isinstance(node, ast.Constant) and _portable(node.value) != node.value
        )
        for node in sorted(paths, key=lambda node: (node.lineno, node.col_offset)):
            yield node, repr(_portable(node.value))


def _names(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else ()
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _items(meta: Mapping, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: meta[name] for name in names if name in meta}


def _portable(value: Any) -> Any:
    """Plain values, with absolute paths made relative; others of a dict are left out.

    Paths below the working directory become relative to it, others keep their name.
    """
    if isinstance(value, Mapping):
        return {key: _portable(x) for key, x in value.items() if _is_plain(x)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_portable, value))
    if not isinstance(value, str) or not _is_absolute(value):
        return value
    path, end = Path(value), '/' if value.endswith('/') else ''
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix() + end
    parts = PurePosixPath(value.replace('\\', '/')).parts
    return parts[-1] + end if len(parts) > 1 else value


def _is_absolute(value: str) -> bool:
    kinds = (PurePosixPath, PureWindowsPath)
    return any(kind(value).is_absolute() for kind in kinds)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not isinstance(value, (Placeholder, Tensor))
