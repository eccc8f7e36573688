"""Reduce a training checkpoint to what is published: weights and metadata."""

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

# Read by mmdet, mmseg and mmpretrain; progress of the training; written by conversion.
META_KEYS = (
    *('dataset_meta', 'CLASSES', 'PALETTE', 'epoch', 'iter', 'mmengine_version'),
    *('family', 'arch', 'source', 'source_sha256', 'mmsparse_version'),
)
MACHINE_SETTINGS = ('work_dir', 'load_from', 'resume', 'resume_from', 'launcher')
EMA_KEY = 'ema_state_dict'


def published_weights(
    checkpoint: Any, ema: bool | None = None, half: bool = False
) -> dict[str, Tensor]:
    """Select the weights of a checkpoint of mmengine.

    Those are the averages of ``EMAHook`` if ``ema`` is true, the weights before
    averaging if it is false, and if it is None the ones that mmengine loads: averages
    if there are any. ``half`` converts floating-point tensors to half precision.
    ValueError is raised without weights or averages, if they are infinite or NaN, and
    if half precision overflows.
    """
    weights = find_state_dict(checkpoint)
    averaged = isinstance(checkpoint, Mapping) and EMA_KEY in checkpoint
    if ema and not averaged:
        raise ValueError(f'The checkpoint has no averages ({EMA_KEY!r}) to publish.')
    if ema is False and averaged:
        # EMAHook swaps the two when it saves them.
        others = checkpoint[EMA_KEY]
        weights = {key: others.get(f'module.{key}', x) for key, x in weights.items()}
        check_weights(weights)
    return {key: _half(key, x) for key, x in weights.items()} if half else weights


def _half(key: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise ValueError(f'{key} has elements too large for half precision.')
    return half


def published_meta(checkpoint: Any, config: str | None = None) -> dict[str, Any]:
    """Return the metadata of a checkpoint as plain values, without local paths.

    These are classes and colors, epoch and iteration, versions, and as ``cfg`` the text
    of the config: that of the checkpoint, or ``config`` if it has none.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    kept = _portable({name: meta[name] for name in META_KEYS if name in meta})
    kept = {'mmsparse_version': __version__, **kept}
    text = portable_config(meta.get('cfg')) or portable_config(config)
    return {**kept, 'cfg': text} if text else kept


def as_strings(meta: Mapping[str, Any]) -> dict[str, str]:
    """Write metadata as strings, which safetensors needs: other values as JSON."""
    return {k: x if isinstance(x, str) else json.dumps(x) for k, x in meta.items()}


def portable_config(text: Any) -> str | None:
    """Remove :data:`MACHINE_SETTINGS` and local paths from the text of a config.

    The text, Python as mmengine stores it, is not run; None if it is no Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, TypeError, ValueError):
        return None
    source = text.encode()  # ast counts columns in bytes
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    for node, replacement in reversed(list(_edits(tree))):
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[node.end_lineno - 1] + node.end_col_offset + (not replacement)
        source = source[:start] + replacement.encode() + source[end:]
    return source.decode()


def _edits(tree: ast.Module) -> Iterator[tuple[Any, str]]:
    """Yield nodes of the tree and their replacements, in the order of the text."""
    for statement in tree.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else ()
        if any(getattr(target, 'id', '') in MACHINE_SETTINGS for target in targets):
            yield statement, ''
            continue
        paths = (
            node
            for node in ast.walk(statement)
            if isinstance(node, ast.Constant) and _portable(node.value) != node.value
        )
        for node in sorted(paths, key=lambda node: (node.lineno, node.col_offset)):
            yield node, repr(_portable(node.value))


def _portable(value: Any) -> Any:
    """Make absolute paths in plain values relative; drop other values of dicts.

    Paths below the working directory become relative to it, others keep their name.
    """
    if isinstance(value, Mapping):
        return {key: _portable(x) for key, x in value.items() if _is_plain(x)}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_portable, value))
    absolute = isinstance(value, str) and any(
        x(value).is_absolute() for x in (PurePosixPath, PureWindowsPath)
    )
    if not absolute:
        return value
    path, end = Path(value), '/' if value.endswith('/') else ''
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix() + end
    parts = PurePosixPath(value.replace('\\', '/')).parts
    return parts[-1] + end if len(parts) > 1 else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not isinstance(value, (Placeholder, Tensor))
