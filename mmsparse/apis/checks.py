"""Check a config before anything is built: channels, pretrained weights and data."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsparse.datasets.checks import check_dataset
from mmsparse.errors import MissingFileError, UsageError
from mmsparse.registry import MODELS

AFTER_BACKBONE = ('neck', 'panoptic_head', 'decode_head', 'head')  # in the order of use


def check_channels(cfg: Config) -> None:
    """Raise UsageError unless the neck or head fits the channels of the backbone.

    Backbones of other libraries are not checked.
    """
    model = cfg.get('model', {})
    backbone = dict(model.get('backbone') or {})
    returned = _backbone_channels(backbone)
    part, settings = _first_with_channels(model)
    if not returned or not part:
        return
    expected, indices = settings['in_channels'], settings.get('in_index')
    if isinstance(expected, int):  # a head on one feature map, by default the last
        expected, indices = [expected], [-1 if indices is None else indices]
    if indices is not None:
        returned = [returned[i] for i in indices]
    if list(expected) != returned:
        raise UsageError(
            f'model.{part}.in_channels={settings["in_channels"]} does not fit '
            f'model.backbone: {backbone["type"]} with '
            f'arch={backbone.get("arch", "the default")!r} and '
            f'out_indices={backbone.get("out_indices", "the default")} returns '
            f'{returned} channels; change in_channels or out_indices.'
        )


def _backbone_channels(settings: dict[str, Any]) -> list[int]:
    """Return the channels of mmsparse's backbones, an empty list for any other."""
    scope, _, name = str(settings.get('type')).partition('.')
    backbone = MODELS.get(name) if scope == MODELS.scope else None
    if not hasattr(backbone, 'arch_settings'):
        return []
    defaults = inspect.signature(backbone).parameters
    arch = settings.get('arch', defaults['arch'].default)
    try:
        widths = dict(enumerate(backbone.resolve_arch(arch).embed_dims))
    except ValueError:  # building the backbone reports it
        return []
    indices = settings.get('out_indices', defaults['out_indices'].default)
    return [widths[i] for i in indices if i in widths]


def _first_with_channels(model: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and settings of the part that follows the backbone."""
    for part in AFTER_BACKBONE:
        settings = model.get(part) or {}
        if isinstance(settings, (list, tuple)):
            settings = settings[0]
        if 'in_channels' in settings:
            return part, settings
    return '', {}


def check_pretrained(cfg: Config) -> None:
    """Raise MissingFileError unless every ``init_cfg`` names a file that exists."""
    for path in _pretrained(cfg.get('model')):
        if '://' not in path and not Path(path).is_file():
            raise MissingFileError(f'init_cfg: no such file: {path}', path)


def _pretrained(settings: Any) -> Iterator[str]:
    """Yield the checkpoint of every ``init_cfg`` at any depth."""
    if isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _pretrained(value)
    elif isinstance(settings, dict):
        if settings.get('type') == 'Pretrained':
            yield str(settings.get('checkpoint'))
        yield from _pretrained(list(settings.values()))


def check_data(cfg: Config) -> None:
    """Raise UsageError unless the data of all dataloaders exist and fit the model."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset', {})
        while 'dataset' in dataset:  # wrappers such as RepeatDataset
            dataset = dataset['dataset']
        root = dataset.get('data_root')
        if root and not Path(root).exists():
            raise MissingFileError(
                f'{name}: no data at {root}; put the data there or change data_root',
                root,
            )
        if root and cfg.get('default_scope') == 'mmseg':
            check_dataset(name, dataset, cfg.get('model') or {})
