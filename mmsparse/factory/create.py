"""Build backbones and classifiers by name."""

import logging
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger, print_log
from torch import Tensor, nn

from mmsparse._logging import log_level
from mmsparse.checkpoint.state_dict import load_state_dict
from mmsparse.errors import UsageError
from mmsparse.factory.data_config import (
    CLASSES,
    adapt_channels,
    default_data,
)
from mmsparse.factory.names import split_name
from mmsparse.factory.pretrained import Pretrained, read_pretrained
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.models.backbones.feature_info import resolve_indices
from mmsparse.models.classifier import Classifier

# Arguments of timm that have another name.
RENAMED = {'in_chans': 'in_channels', 'checkpoint_path': 'pretrained'}


def create_backbone(
    name: str,
    pretrained: str | Path | bool | None = None,
    **arguments: Any,
) -> StagedBackbone:
    """Build a backbone; of OpenMMLab this needs mmengine alone.

    Args:
        name: One of :func:`list_models`, for example ``dat-pp-tiny``.
        pretrained: A file with weights, ``.safetensors`` or ``.pth``, a URL, or
            ``hf-hub:owner/name``: an official checkpoint of this model, or one of
            mmsparse (of a backbone, classifier, detector or segmentor). True for the
            weights that :mod:`mmsparse.weights` knows for ``name``; None or False for
            random weights.
        **arguments: Arguments of the backbone, for example
            ``out_indices=(0, 1, 2, 3)``. ``attention``, ``regions_per_side`` and
            ``out_norm`` are otherwise those of the config in the file.

    Returns:
        The backbone, from images, (B, in_channels, H, W), to a tuple of one (B, C, H',
        W') for each of ``out_indices``; ``feature_info`` has their channels and
        strides.

    Raises:
        ValueError: The name is unknown, an argument is out of range, or the file is no
            checkpoint or does not fit; lists the keys.
        TypeError: The backbone has no such argument; names the closest.
    """
    family, arch = split_name(name)
    _check_names(arguments, create_backbone, family)
    weights = read_pretrained(pretrained, family, arch, backbone_only=True)
    backbone = _build_backbone(name, weights, {**weights.settings, **arguments})
    backbone.pretrained_cfg = _pretrained_cfg(name, backbone, weights)
    return backbone


def create_model(
    name: str,
    pretrained: str | Path | bool | None = None,
    num_classes: int | None = None,
    in_channels: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    drop_path_rate: float = 0.0,
    global_pool: str = 'avg',
    drop_rate: float = 0.0,
    **arguments: Any,
) -> Classifier | StagedBackbone:
    """Build a classifier, or with ``features_only`` a backbone; as timm's function.

    Args:
        name: One of :func:`list_models`, for example ``dat-pp-tiny``.
        pretrained: See :func:`create_backbone`.
        num_classes: Number of classes, 0 for no linear layer; None for those of the
            file, or 1000. Another number than that of the file gets a linear layer with
            random weights.
        in_channels: Channels of the images; weights of RGB images are adapted.
        features_only: Whether to return the backbone, for feature maps of several
            stages.
        out_indices: Stages of ``features_only``, counted from 0, negative ones from the
            end; an integer is the number of last stages, None all.
        drop_path_rate: Drop path rate of the last block; grows linearly from 0.
        global_pool: ``avg`` or ``max``; '' for none, which needs ``num_classes=0``.
        drop_rate: Dropout rate before the linear layer.
        **arguments: Further arguments of the backbone, for example ``with_cp=True``.

    Returns:
        The classifier, from images, (B, in_channels, H, W), to logits, (B,
        num_classes), or the backbone, see :func:`create_backbone`. ``pretrained_cfg``
        has mean, standard deviation, size, interpolation and crop of the images, for
        timm's ``create_transform``.

    Raises:
        ValueError: See :func:`create_backbone`.
        TypeError: See :func:`create_backbone`.
    """
    family, arch = split_name(name)
    _check_names(arguments, create_model, family)
    arguments = dict(arguments, in_channels=in_channels, drop_path_rate=drop_path_rate)
    if features_only:
        total = BACKBONES[family].arch_settings[arch].num_stages
        indices = resolve_indices('out_indices', out_indices, total)
        return create_backbone(name, pretrained, out_indices=indices, **arguments)
    if out_indices is not None:
        raise ValueError(
            'out_indices needs features_only=True; for feature maps of a classifier '
            'use forward_intermediates.'
        )
    weights = read_pretrained(pretrained, family, arch, backbone_only=False)
    settings = {k: x for k, x in weights.settings.items() if k != 'out_norm'}
    backbone = _build_backbone(name, weights, {**settings, **arguments})
    classes = num_classes if num_classes is not None else weights.num_classes or CLASSES
    model = Classifier(backbone, classes, global_pool, drop_rate)
    _load_head(model, weights)
    cfg = _pretrained_cfg(name, backbone, weights)
    model.pretrained_cfg = dict(
        cfg,
        num_classes=weights.num_classes or CLASSES,
        first_conv=f'backbone.{cfg["first_conv"]}',
        classifier='head.fc',
    )
    return model


def _check_names(names: Iterable[str], function: Callable, family: str) -> None:
    """Raise TypeError for an argument that neither function nor backbone has."""
    own = {*signature(function).parameters} - {'arguments'}
    known = sorted((own | {*signature(BACKBONES[family]).parameters}) - {'arch'})
    for name in names:
        if name in known:
            continue
        close = [RENAMED[name]] if name in RENAMED else get_close_matches(name, known)
        meant = f'did you mean {" or ".join(map(repr, close))}?'
        hint = meant if close else f'it has {", ".join(known)}.'
        raise TypeError(
            f'{function.__name__} has no argument {name!r} for {family}; {hint}'
        )


def _build_backbone(
    name: str, pretrained: Pretrained, arguments: dict[str, Any]
) -> StagedBackbone:
    family, arch = split_name(name)
    backbone = BACKBONES[family](arch, **arguments)
    if pretrained.path is None:
        if not next(backbone.parameters()).is_meta:
            # mmengine would log every parameter.
            with log_level(MMLogger.get_current_instance(), logging.WARNING):
                backbone.init_weights()
        return backbone
    own = _match_outputs(pretrained.backbone, backbone)
    if mismatch := load_state_dict(backbone, own):
        raise UsageError(
            f'pretrained: {pretrained.path} does not fit {name}; {mismatch}'
        )
    return backbone


def _load_head(model: Classifier, pretrained: Pretrained) -> None:
    """Load the linear layer, or report that it has random weights."""
    path, found, classes = pretrained.path, pretrained.num_classes, model.num_classes
    if classes and found == classes:
        model.head.fc.load_state_dict(pretrained.head)
    elif classes and path is not None:
        has = f'a linear layer for {found} classes' if found else 'no linear layer'
        print_log(
            f'{path} has {has}; that for {classes} starts from random weights.',
            logger='current',
            level=logging.WARNING,
        )


def _pretrained_cfg(
    name: str, backbone: StagedBackbone, pretrained: Pretrained
) -> dict[str, Any]:
    channels = backbone.in_channels
    data = default_data(backbone.arch, backbone.crop_mode, channels)
    data |= pretrained.data
    for key in ('mean', 'std'):
        data[key] = adapt_channels(data[key], channels)
    side = data['input_size'][-1]
    stride = backbone.feature_info.reduction(-1)
    convs = (key for key, x in backbone.named_modules() if isinstance(x, nn.Conv2d))
    return dict(
        data,
        architecture=name,
        input_size=(channels, side, side),
        pool_size=(-(-side // stride),) * 2,
        first_conv=next(convs),
    )


def _match_outputs(
    weights: dict[str, Tensor], backbone: StagedBackbone
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
