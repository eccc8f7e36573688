"""Weights of a file, mmsparse's or official ones, and the settings they need."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor

from mmsparse.checkpoint.config_text import literal_settings
from mmsparse.checkpoint.files import read_checkpoint, read_metadata
from mmsparse.checkpoint.state_dict import find_prefix, find_state_dict, strip_prefix
from mmsparse.conversion.convert import convert
from mmsparse.conversion.families import BACKBONE, FAMILIES
from mmsparse.errors import UsageError
from mmsparse.factory.data_config import evaluation_data
from mmsparse.models.backbones import BACKBONES
from mmsparse.models.backbones.base import OWN_KEYS, StagedBackbone
from mmsparse.weights import locate

# Settings of a backbone that the meaning of its weights depends on.
KEPT_SETTINGS = ('attention', 'regions_per_side', 'out_norm')


@dataclass(frozen=True)
class Pretrained:
    """Weights of a file.

    Args:
        path: The file; None without weights.
        weights: Weights under mmsparse's keys: ``backbone.*`` and those of other parts.
        settings: Arguments of the backbone in the config that the file has.
        data: Images that the weights expect, as far as the file has them: entries of
            ``pretrained_cfg``.
    """

    path: Path | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> dict[str, Tensor]:
        """Weights of the backbone."""
        return strip_prefix(self.weights, BACKBONE)

    @property
    def head(self) -> dict[str, Tensor]:
        """Weights of the linear layer of a classifier; none if it has no such."""
        return strip_prefix(self.weights, 'head.fc.')

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the linear layer; None without one."""
        return len(self.head['bias']) if {*self.head} == {'weight', 'bias'} else None


def read_pretrained(
    source: str | Path | bool | None, family: str, arch: str, backbone_only: bool
) -> Pretrained:
    """Read the weights of a model.

    Args:
        source: What :func:`mmsparse.weights.locate` takes; None or False for none.
        family: Family of the backbone.
        arch: Arch of the backbone.
        backbone_only: Whether to leave out other parts of official weights.

    Returns:
        The weights.

    Raises:
        UsageError: There is no such file, or it has no weights of the family.
    """
    if source is None or source is False:
        return Pretrained()
    path = locate(source, f'{family}-{arch}')
    checkpoint = read_checkpoint(path)
    try:
        weights = _find_weights(checkpoint, path, family, arch, backbone_only)
    except ValueError as error:
        raise UsageError(f'pretrained: {path}: {error}') from error
    meta = read_metadata(path, checkpoint)
    config = literal_settings(meta.get('cfg'))
    return Pretrained(
        path,
        weights,
        _backbone_settings(config, BACKBONES[family]),
        evaluation_data(config, meta.get('dataset_meta')),
    )


def _find_weights(
    checkpoint: Any, path: Path, family: str, arch: str, backbone_only: bool
) -> dict[str, Tensor]:
    weights = find_state_dict(checkpoint)
    prefix = find_prefix(weights, marker=OWN_KEYS)
    if prefix is not None and not prefix.endswith(BACKBONE):
        return {BACKBONE + k: x for k, x in strip_prefix(weights, prefix).items()}
    if prefix is not None:
        return strip_prefix(weights, prefix.removesuffix(BACKBONE))
    if family in FAMILIES and FAMILIES[family].prefix(weights) is not None:
        converted = convert(checkpoint, family, arch, backbone_only)
        print_log(f'{path}: official weights, converted to {family}-{arch}.', 'current')
        return converted.state_dict
    raise ValueError(
        f'no weights of {family}, neither official nor of mmsparse; the keys begin '
        f'with {list(weights)[:3]}.'
    )


def _backbone_settings(
    config: Mapping[str, Any], backbone: type[StagedBackbone]
) -> dict[str, Any]:
    try:
        settings = config['model']['backbone']
        kept = {key: settings[key] for key in KEPT_SETTINGS if key in settings}
    except (KeyError, TypeError):
        return {}
    return {key: x for key, x in kept.items() if key in signature(backbone).parameters}
