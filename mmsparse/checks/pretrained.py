"""Check files of pretrained weights, and what needs them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsparse.checks.keywords import type_name
from mmsparse.errors import MissingFileError


def check_pretrained(cfg: Config) -> None:
    """Raise MissingFileError unless every file of weights exists.

    These are ``load_from``, ``checkpoint`` of each ``init_cfg`` in the model, and the
    deprecated ``pretrained`` of model and backbone.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    paths = [
        *_pretrained('model', model),
        ('model.pretrained', model.get('pretrained')),
        ('model.backbone.pretrained', backbone.get('pretrained')),
        ('load_from', cfg.get('load_from')),
    ]
    for setting, path in paths:
        local = isinstance(path, str) and '://' not in path
        if local and not Path(path).expanduser().exists():
            raise MissingFileError(f'{setting}: no such file: {path}', path)


def _pretrained(path: str, settings: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and checkpoint of every ``init_cfg`` at any depth."""
    if isinstance(settings, (list, tuple)):
        for i, value in enumerate(settings):
            yield from _pretrained(f'{path}[{i}]', value)
    elif isinstance(settings, dict):
        if type_name(settings) in ('Pretrained', 'PretrainedInit'):
            yield f'{path}.checkpoint', settings.get('checkpoint')
        for key, value in settings.items():
            yield from _pretrained(f'{path}.{key}', value)


def starts_from_weights(cfg: Config) -> bool:
    """Return whether the weights of the backbone are loaded."""
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    deprecated = backbone.get('pretrained') or model.get('pretrained')
    started = cfg.get('load_from') or cfg.get('resume') or model.get('init_cfg')
    return bool(started or deprecated or list(_pretrained('', backbone)))


def untrained_norms(cfg: Config) -> list[str]:
    """Return a note if BatchNorm layers keep statistics that were never computed."""
    backbone = (cfg.get('model') or {}).get('backbone') or {}
    if not backbone.get('norm_eval') or starts_from_weights(cfg):
        return []
    return [
        'model.backbone.norm_eval=True keeps the statistics of BatchNorm, but no '
        'weights are loaded that have any; set init_cfg, or norm_eval=False.'
    ]
