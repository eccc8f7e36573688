"""Build backbones and classifiers by name, with mmsparse's or official weights."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger, print_log
from torch import Tensor

from mmsparse._logging import log_level
from mmsparse.checkpoint.files import read_checkpoint
from mmsparse.checkpoint.state_dict import (
    find_prefix,
    find_state_dict,
    load_state_dict,
    shapes_of,
    strip_prefix,
)
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import BACKBONE, FAMILIES
from mmsparse.errors import UsageError
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import OWN_KEYS, StagedBackbone
from mmsparse.models.classifier import Classifier


def list_models() -> list[str]:
    """Return the sorted names ``<family>-<arch>`` of all backbones and classifiers."""
    return sorted(
        f'{family}-{arch}'
        for family, backbone in BACKBONES.items()
        for arch in backbone.arch_settings
    )


def create_backbone(
    name: str, pretrained: str | Path | None = None, **arguments: Any
) -> StagedBackbone:
    """Build a backbone; of OpenMMLab this needs mmengine alone.

    Args:
        name: One of :func:`list_models`, for example ``dat-pp-tiny``.
        pretrained: File with weights, ``.safetensors`` or ``.pth``: an official
            checkpoint of this model, or one of mmsparse (of a backbone, classifier,
            detector or segmentor). None starts from random weights.
        **arguments: Arguments of the backbone, for example
            ``out_indices=(0, 1, 2, 3)``.

    Returns:
        The backbone, from images, (B, in_channels, H, W), to a tuple of one (B, C, H',
        W') for each of ``out_indices``; ``feature_info`` has their channels and
        strides.

    Raises:
        ValueError: The name is unknown, an argument is out of range, or the file is no
            checkpoint or does not fit; lists the keys.
    """
    backbone, _ = _build_backbone(name, pretrained, arguments, alone=True)
    return backbone


def create_model(
    name: str,
    pretrained: str | Path | None = None,
    num_classes: int = 1000,
    **arguments: Any,
) -> Classifier:
    """Build a classifier: a backbone, global average pooling and a linear layer.

    Args:
        name: One of :func:`list_models`.
        pretrained: See :func:`create_backbone`. The linear layer starts from random
            weights unless the file has one for ``num_classes``.
        num_classes: Number of classes.
        **arguments: Arguments of the backbone.

    Returns:
        The classifier, from images, (B, in_channels, H, W), to logits, (B,
        num_classes).

    Raises:
        ValueError: See :func:`create_backbone`.
    """
    backbone, weights = _build_backbone(name, pretrained, arguments)
    model = Classifier(backbone, backbone.feature_info.channels()[-1], num_classes)
    head = strip_prefix(weights, 'head.')
    if shapes_of(head) == shapes_of(model.head.state_dict()):
        model.head.load_state_dict(head)
    elif weights:
        print_log(
            f'{pretrained} has no linear layer for {num_classes} classes; it starts '
            f'from random weights.',
            logger='current',
            level=logging.WARNING,
        )
    return model


def _build_backbone(
    name: str,
    path: str | Path | None,
    arguments: Mapping[str, Any],
    alone: bool = False,
) -> tuple[StagedBackbone, dict[str, Tensor]]:
    """Return the backbone, and the weights in the file: ``backbone.*`` and others."""
    family, _, arch = name.partition('-')
    if family not in BACKBONES or arch not in BACKBONES[family].arch_settings:
        raise ValueError(f'name must be one of {list_models()}; got {name!r}.')
    weights = {} if path is None else _read_pretrained(family, arch, path, alone)
    backbone = BACKBONES[family](arch, **arguments)
    if not weights:
        # mmengine would log every parameter.
        with log_level(MMLogger.get_current_instance(), logging.WARNING):
            backbone.init_weights()
        return backbone, weights
    own = _match_outputs(strip_prefix(weights, BACKBONE), backbone)
    if mismatch := load_state_dict(backbone, own):
        raise UsageError(f'pretrained: {path} does not fit {name}; {mismatch}')
    return backbone, weights


def _read_pretrained(
    family: str, arch: str, path: str | Path, backbone_only: bool
) -> dict[str, Tensor]:
    """Read ``backbone.*``, and the rest of the model if there is more."""
    checkpoint = read_checkpoint(path)
    try:
        weights = find_state_dict(checkpoint)
        prefix = find_prefix(weights, marker=OWN_KEYS)
        if prefix is not None and not prefix.endswith(BACKBONE):
            return {BACKBONE + k: x for k, x in strip_prefix(weights, prefix).items()}
        if prefix is not None:
            return strip_prefix(weights, prefix.removesuffix(BACKBONE))
        if family in FAMILIES and FAMILIES[family].prefix(weights) is not None:
            converted = convert(checkpoint, family, arch, backbone_only)
            name = f'{family}-{arch}'
            print_log(f'{path}: official weights, converted to {name}.', 'current')
            return converted.state_dict
    except ValueError as error:
        raise UsageError(f'pretrained: {path}: {error}') from error
    raise UsageError(
        f'pretrained: {path} has no weights of {family}, neither official nor of '
        f'mmsparse; its keys begin with {list(weights)[:3]}.'
    )


def _match_outputs(
    weights: Mapping[str, Tensor], backbone: StagedBackbone
) -> dict[str, Tensor]:
    """Drop stages that the backbone lacks, and exchange the norms of the outputs.

    A file has norms for the outputs of its model; a classifier for the last stage only.
    """
    own, num_stages = backbone.state_dict(), len(backbone.stages)
    norms = {key: x for key, x in own.items() if key.startswith('out_norms.')}
    matched = {}
    for key, tensor in weights.items():
        part, _, rest = key.partition('.')
        if part == 'out_norms':
            if key in norms:
                norms[key] = tensor
        elif part not in ('downsamples', 'stages') or (
            int(rest.partition('.')[0]) < num_stages
        ):
            matched[key] = tensor
    return matched | norms
