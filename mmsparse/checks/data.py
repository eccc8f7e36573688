"""Find the data sets of a config, and check that their files exist."""

import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope

from mmsparse.checks.keywords import dataset_settings, find_class, type_name
from mmsparse.checks.signatures import parameters
from mmsparse.errors import MissingFileError, UsageError, format_error

IMAGES = ('.avif', '.bmp', '.gif', '.jp2', '.jpeg', '.jpg', '.pgm', '.png', '.ppm')
IMAGES += ('.tif', '.tiff', '.webp')
IMAGE_FOLDERS = ('img', 'img_path', 'seg_map_path')  # keys of data_prefix


@dataclass(frozen=True)
class Data:
    """One data set of a config, built without reading its files."""

    loader: str  # train_dataloader, val_dataloader or test_dataloader
    path: str  # of its settings in the config
    settings: Mapping[str, Any]
    dataset: BaseDataset
    is_fold: bool = False  # of a KFoldDataset, which shares its files

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the config, or of MMEngine's JSON files."""
        names = self.dataset.metainfo.get('classes')
        if names is None and self.is_local and has_json(self.dataset):
            names = read_dataset_json(self)['metainfo'].get('classes')
        return tuple(names or ())

    @property
    def has_indices(self) -> bool:
        """Whether only some samples of its files are used."""
        return self.settings.get('indices') is not None

    @property
    def is_local(self) -> bool:
        """Whether its files must be in the file system of this machine."""
        return _is_local(type(self.dataset), self.settings)

    @property
    def has_videos(self) -> bool:
        """Whether it is one of mmdet's for tracking, which have other classes."""
        return any(x.__name__ == 'BaseVideoDataset' for x in type(self.dataset).__mro__)


def read_datasets(cfg: Config, host: str, loader: str) -> list[Data]:
    """Build the data sets of a loader, also those in wrappers, without their files.

    MissingFileError is raised unless root, annotation file and folders exist. Classes
    that do not derive from MMEngine's ``BaseDataset`` are skipped.
    """
    datasets = importlib.import_module(f'{host}.registry').DATASETS
    found, folds = [], []
    with DefaultScope.overwrite_default_scope(host):
        for path, settings in dataset_settings(loader, cfg.get(loader)):
            cls = find_class(datasets, settings.get('type'))
            if type_name(settings) == 'KFoldDataset':
                folds.append(f'{path}.')
            if cls is None or not issubclass(cls, BaseDataset):
                continue
            _check_metainfo(path, settings.get('metainfo'))
            if _is_local(cls, settings):
                _check_paths(loader, path, settings)
            built = _build(cls, path, settings)
            is_fold = path.startswith(tuple(folds))
            found.append(Data(loader, path, settings, built, is_fold))
    return found


def _build(cls: type, path: str, settings: Mapping[str, Any]) -> BaseDataset:
    arguments = {k: v for k, v in settings.items() if k not in ('type', '_scope_')}
    arguments['lazy_init'] = True
    accepted = parameters(cls)
    if accepted is None or 'pipeline' in accepted:
        arguments['pipeline'] = []
    try:
        return cls(**arguments)
    except Exception as error:  # noqa: BLE001 - any class of the user
        reason = format_error(error)
        raise UsageError(f'{path}: {cls.__name__}: {reason}') from error


def _check_metainfo(path: str, metainfo: Any) -> None:
    if not isinstance(metainfo, Mapping):
        return
    classes = metainfo.get('classes')
    if classes is None and 'CLASSES' in metainfo:
        raise UsageError(
            f'{path}.metainfo.CLASSES has no effect in OpenMMLab 2.x; write classes '
            f'and palette in lower case.'
        )
    if classes is None or _is_file(classes):
        return
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise UsageError(
            f'{path}.metainfo.classes={classes!r} must be a tuple of names; for one '
            f"class write ('{classes}',)."
        )
    twice = [x for x in classes if list(classes).count(x) > 1]
    if twice:
        raise UsageError(f'{path}.metainfo.classes has {twice[0]!r} twice.')


def _is_file(classes: Any) -> bool:
    """Return whether classes are the lines of a file, as MMEngine reads them."""
    return isinstance(classes, str) and ('://' in classes or Path(classes).is_file())


def has_json(dataset: BaseDataset) -> bool:
    """Return whether a data set reads a JSON file as MMEngine's ``BaseDataset``."""
    methods = ('load_data_list', 'parse_data_info')
    own = all(getattr(type(dataset), x) is getattr(BaseDataset, x) for x in methods)
    return own and str(dataset.ann_file).endswith('.json')


def read_dataset_json(data: Data) -> Mapping[str, Any]:
    """Return metainfo and data_list of a JSON file in MMEngine's format."""
    path = Path(data.dataset.ann_file)
    return _read_dataset_json(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_dataset_json(path: Path, changed: int) -> Mapping[str, Any]:
    content = read_json(path)
    parts = ('metainfo', 'data_list')
    if not isinstance(content, dict) or not set(parts) <= content.keys():
        raise UsageError(
            f'{path} must have the keys metainfo and data_list (format of MMEngine); '
            f'got {listed(sorted(content)) if isinstance(content, dict) else "a list"}.'
        )
    for part, expected in zip(parts, (dict, list), strict=True):
        if not isinstance(content[part], expected):
            raise UsageError(f'{path}: {part} must be a {expected.__name__}.')
    return content


def read_json(path: Path) -> Any:
    """Return the content of a JSON file; UsageError unless it can be read."""
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UsageError(f'{path} is not valid JSON: {error}') from error


def _is_local(cls: type, settings: Mapping[str, Any]) -> bool:
    if 'download' in (parameters(cls) or ()) and settings.get('download', True):
        return False
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    roots = [settings.get(x) for x in ('data_root', 'ann_file', 'data_prefix')]
    return backend == 'local' and not any(
        '://' in root for root in roots if isinstance(root, str)
    )


def _check_paths(loader: str, path: str, settings: Mapping[str, Any]) -> None:
    """Raise MissingFileError unless root, annotation file and folders exist."""
    data_root = settings.get('data_root') or ''
    root = Path(data_root).expanduser()
    if not root.exists():
        raise MissingFileError(
            f'{loader}: no data at {data_root}; put the data there or change '
            f'{path}.data_root',
            str(root),
        )
    name = settings.get('ann_file')
    if name and isinstance(name, str) and not (root / name).exists():
        raise MissingFileError(
            f'{path}.ann_file: no such file: {root / name}; {near(root / name)}',
            str(root / name),
        )
    prefix = settings.get('data_prefix')
    for key, name in prefix.items() if isinstance(prefix, Mapping) else ():
        used = key in IMAGE_FOLDERS and isinstance(name, str) and '://' not in name
        if used and not (root / name).is_dir():
            raise MissingFileError(
                f'{path}.data_prefix.{key}: no such folder: {root / name}; '
                f'{near(root / name)}',
                str(root / name),
            )


def near(path: Path) -> str:
    """Return what the nearest existing folder above a missing path has instead."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return f'{folder} has {listed(names_in(folder)) or "no files"}'


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder, [] if there is none."""
    return sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []


def listed(names: Sequence[Any], shown: int = 3) -> str:
    """Join names for a message: the first ones, and how many more."""
    more = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(map(str, names[:shown])) + more


def missing_files(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that do not exist; lists each folder once."""
    folders = {path.parent for path in paths}
    present = set(_files_in(folders))
    return [path for path in paths if path not in present]


def _files_in(folders: set[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_symlink() or os.path.exists(entry.path):
                        yield Path(entry.path)
