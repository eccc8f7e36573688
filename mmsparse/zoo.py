"""The configs of mmsparse by name, from its metafiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mmsparse._paths import ROOT
from mmsparse.errors import UsageError

HOSTS = {  # of the tasks in metafiles
    'Image Classification': 'mmpretrain',
    'Object Detection': 'mmdet',
    'Instance Segmentation': 'mmdet',
    'Panoptic Segmentation': 'mmdet',
    'Semantic Segmentation': 'mmseg',
}


@dataclass(frozen=True)
class Entry:
    """A config in a metafile.

    Args:
        name: Its name.
        path: Its file.
        host: Its library: mmpretrain, mmdet or mmseg.
        weights: Web address of trained weights, if there are any.
    """

    name: str
    path: Path
    host: str
    weights: str | None


@cache
def read_metafiles() -> dict[str, dict[str, Any]]:
    """Return what all metafiles have of their models, by name."""
    paths = _read(ROOT / 'model-index.yml')['Import']
    models = (model for path in paths for model in _read(ROOT / path)['Models'])
    return {model['Name']: model for model in models}


@cache
def read_index() -> dict[str, Entry]:
    """Return the configs in all metafiles by name."""
    return {name: _entry(model) for name, model in read_metafiles().items()}


def find_config(name: str) -> Path:
    """Return the file of a config, which may be given with its suffix.

    UsageError lists similar names if there is none.
    """
    index = read_index()
    if entry := index.get(name.removesuffix('.py')):
        return entry.path
    close = get_close_matches(Path(name).stem, index)
    hint = f'; similar names: {", ".join(close)}' if close else ''
    raise UsageError(f'config: no such file: {name}{hint}')


def _entry(model: Mapping[str, Any]) -> Entry:
    host = HOSTS[model['Results'][0]['Task']]
    return Entry(model['Name'], ROOT / model['Config'], host, model.get('Weights'))


def _read(path: Path) -> dict[str, Any]:
    # The parser in C is ten times as fast; few builds of PyYAML lack it.
    loader = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)
    return yaml.load(path.read_text(encoding='utf-8'), loader)
