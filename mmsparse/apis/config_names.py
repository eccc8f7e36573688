"""Let mmdet, mmseg and mmpretrain find the configs of mmsparse by name."""

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.infer import BaseInferencer

from mmsparse._paths import ROOT
from mmsparse.weights import cache
from mmsparse.weights.manifest import all_entries
from mmsparse.zoo import read_index

_read_host_index = BaseInferencer._get_models_from_metafile


def register_configs() -> None:
    """Let mmdet, mmseg and mmpretrain find the configs of mmsparse by name.

    From now on their inferencers, and ``get_model`` and ``list_models`` of mmpretrain,
    take these names. Weights that metafiles name are downloaded, and those of the
    manifest are loaded if they are in the repository or a cache; other models start
    from random weights, with the warning of the library. Calling it again changes
    nothing.
    """
    # mmengine has no place to add models to: this function yields those of a library.
    BaseInferencer._get_models_from_metafile = staticmethod(_read_indexes)
    if find_spec('mmpretrain'):
        _register_classifiers()


def _read_indexes(folder: str) -> Iterator[dict[str, Any]]:
    """Yield the models of a library, and those of mmsparse that are built with it.

    Args:
        folder: The folder with configs and model index of the library: ``.mim`` in its
            package, or a clone of its repository.
    """
    yield from _read_host_index(folder)
    path = Path(folder)
    for entry in read_index().values():
        if path.parent.name == entry.host or (path / entry.host).is_dir():
            weights = entry.weights or _find_weights(entry.name)
            yield dict(Name=entry.name, Config=str(entry.path), Weights=weights)


def _register_classifiers() -> None:
    """Add the classifiers to the models of mmpretrain."""
    hub = import_module('mmpretrain.apis.model').ModelHub
    hosts = {entry.name: entry.host for entry in read_index().values()}
    if not any(map(hub.has, hosts)):
        hub.register_model_index(ROOT / 'model-index.yml', config_prefix=ROOT)
    for name, host in hosts.items():
        if host != 'mmpretrain':  # whose registries lack these models
            hub._models_dict.pop(name, None)
        elif weights := _find_weights(name):
            hub._models_dict[name].weights = weights


def _find_weights(name: str) -> str | None:
    """Return the file of a config's weights that the repository or a cache has."""
    known = (x for x in all_entries() if x.name == name and x.sha256 and not x.official)
    path = next(filter(None, map(cache.find, known)), None)
    return str(path) if path else None
