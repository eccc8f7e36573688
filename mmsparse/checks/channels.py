"""Check that neck and heads take the channels that the backbone returns."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from mmsparse.checks.keywords import type_name
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.registry import MODELS

# Necks by what their in_channels are: all feature maps, these from deep to shallow, or
# the last. Others are not checked.
IN_ORDER = {'ChannelMapper', 'CSPNeXtPAFPN', 'FPN', 'FPN_CARAFE', 'HRFPN', 'NASFPN'}
IN_ORDER |= {'MultiLevelNeck', 'NASFCOS_FPN', 'PAFPN', 'YOLOXPAFPN'}
REVERSED = {'YOLOV3Neck'}
ON_LAST = {'CTResNetNeck', 'DilatedEncoder', 'LinearNeck'}
WITHOUT_CHANNELS = {'GlobalAveragePooling', 'GeneralizedMeanPooling'}
NECK_ON_LAST = {'PanopticDETR'}  # detectors whose neck takes only the last map
HEADS = ('panoptic_head', 'decode_head', 'auxiliary_head', 'head')


def check_channels(cfg: Config) -> None:
    """Raise UsageError unless neck or heads fit the channels of the backbone.

    Backbones of other libraries and unknown necks are not checked.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    returned = _backbone_channels(backbone)
    if type_name(model) in NECK_ON_LAST:
        returned = returned[-1:]
    for path, settings in _parts_after(model) if returned else ():
        expected = settings['in_channels']
        fitting = _fitting(settings, returned)
        if fitting is None or expected == fitting:
            continue
        if isinstance(fitting, list) and list(expected) == fitting:
            continue
        raise UsageError(
            f'{path}.in_channels={expected} does not fit model.backbone: '
            f'{type_name(backbone)} with arch={backbone.get("arch", "the default")!r} '
            f'and out_indices={backbone.get("out_indices", "the default")} returns '
            f'{returned} channels; set in_channels={fitting} or change out_indices.'
        )


def _fitting(settings: Mapping[str, Any], returned: list[int]) -> Any:
    """Return the value that in_channels must have, None if unknown."""
    name, value = type_name(settings), settings['in_channels']
    if name in REVERSED:
        return returned[::-1]
    index = settings.get('in_index')
    try:
        if isinstance(value, int):  # of a head on one feature map, by default the last
            return returned[-1 if index is None else index]
        return returned if index is None else [returned[i] for i in index]
    except (IndexError, TypeError):
        return None  # the head itself reports it


def _backbone_channels(settings: Any) -> list[int]:
    """Return the channels of mmsparse's backbones, an empty list for any other."""
    cls = settings.get('type') if isinstance(settings, Mapping) else None
    if isinstance(cls, str):
        scope, _, name = cls.partition('.')
        cls = MODELS.get(name) if scope == MODELS.scope else None
    if not (inspect.isclass(cls) and issubclass(cls, StagedBackbone)):
        return []
    defaults = inspect.signature(cls).parameters
    arch = settings.get('arch', defaults['arch'].default)
    try:
        widths = dict(enumerate(cls.resolve_arch(arch).embed_dims))
    except ValueError:  # building the backbone reports it
        return []
    indices = settings.get('out_indices', defaults['out_indices'].default)
    if not isinstance(indices, (list, tuple)):
        return []
    return [widths[i] for i in indices if i in widths]


def _parts_after(model: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield path and settings of the parts that take the maps of the backbone."""
    necks = model.get('neck') or []
    for path, neck in _items('model.neck', necks):
        name = type_name(neck)
        if name in IN_ORDER | REVERSED | ON_LAST and 'in_channels' in neck:
            yield path, neck
        if name not in WITHOUT_CHANNELS:
            return
    for part in HEADS:
        for path, head in _items(f'model.{part}', model.get(part) or []):
            if 'in_channels' in head:
                yield path, head


def _items(path: str, settings: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(settings, Mapping):
        yield path, settings
    else:
        for i, item in enumerate(settings):
            yield f'{path}[{i}]', item
