"""Backbones by name, for code that uses none of the hosts."""

import logging
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger

from mmsparse._logging import log_level
from mmsparse.checkpoint.state_dict import find_prefix, listed, read_weights
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import StagedBackbone


def list_backbones() -> list[str]:
    """Tell the names that :func:`create_backbone` knows.

    Returns:
        ``<family>-<arch>`` for every arch, sorted.
    """
    return sorted(
        f'{family}-{arch}'
        for family, backbone in BACKBONES.items()
        for arch in backbone.arch_settings
    )


def create_backbone(
    name: str, pretrained: str | Path | None = None, **arguments: Any
) -> StagedBackbone:
    """Build a backbone; mmengine is needed, and no host.

    Args:
        name: One of :func:`list_backbones`, for example ``dat-pp-tiny``.
        pretrained: File of weights in our layout, ``.safetensors`` or ``.pth``: of a
            backbone, or of a classifier, detector or segmentor, of which the keys below
            ``backbone.`` count. What ``tools/convert_checkpoint.py`` writes is such a
            file. None starts from random weights.
        **arguments: Those of the backbone, ``out_indices=(0, 1, 2, 3)`` for example.

    Returns:
        The backbone, which maps (B, 3, H, W) to a tuple of one (B, C, H', W') for each
        of ``out_indices``; ``feature_info`` tells their channels and strides.

    Raises:
        ValueError: The name is unknown, an argument is out of range, or the file is no
            checkpoint or does not fit: lists the keys.
    """
    family, _, arch = name.partition('-')
    if family not in BACKBONES or arch not in BACKBONES[family].arch_settings:
        raise ValueError(f'name must be one of {list_backbones()}; got {name!r}.')
    backbone = BACKBONES[family](arch, **arguments)
    if pretrained is None:
        # mmengine would log every parameter.
        with log_level(MMLogger.get_current_instance(), logging.WARNING):
            backbone.init_weights()
    else:
        load_backbone(backbone, pretrained)
    return backbone


def load_backbone(backbone: StagedBackbone, path: str | Path) -> None:
    """Load weights, all of them that the backbone has but for norms of the outputs.

    A file has the norms of the outputs that its model had, a classifier that of the
    last stage alone. Those that it lacks stay as they are; those of others, and stages
    behind the last that is returned, are left out.

    Args:
        backbone: A backbone of ours.
        path: The file, see :func:`create_backbone`.

    Raises:
        ValueError: The file is no checkpoint, holds no backbone of ours, or does not
            fit: lists the keys.
    """
    found = read_weights(path)
    prefix = find_prefix(found, marker=r'downsamples\.0\.')
    if prefix is None:
        raise ValueError(
            f'pretrained: {path} holds no backbone of ours; its keys begin with '
            f'{list(found)[:3]}. Weights of the authors are converted by '
            'tools/convert_checkpoint.py.'
        )
    weights = {
        key.removeprefix(prefix): tensor
        for key, tensor in found.items()
        if key.startswith(prefix) and not _is_behind(key.removeprefix(prefix), backbone)
    }
    own = backbone.state_dict()
    faults = {
        'missing': [key for key in own if key not in weights and not _is_norm(key)],
        'unexpected': [key for key in weights if key not in own and not _is_norm(key)],
    }
    told = [f'{kind}: {listed(keys)}' for kind, keys in faults.items() if keys]
    if not told:
        try:
            backbone.load_state_dict(weights, strict=False)
        except RuntimeError as error:  # other shapes; the first line names the class
            told = [line.strip() for line in str(error).splitlines()[1:]]
    if told:
        raise ValueError(
            f'pretrained: {path} does not fit {type(backbone).__name__}; '
            f'{"; ".join(told)}'
        )


def _is_norm(key: str) -> bool:
    return key.startswith('out_norms.')


def _is_behind(key: str, backbone: StagedBackbone) -> bool:
    """Whether a key is of a stage that the backbone does without."""
    part, _, rest = key.partition('.')
    stage = rest.partition('.')[0]
    return part in ('downsamples', 'stages') and int(stage) >= len(backbone.stages)
