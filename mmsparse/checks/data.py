"""Find the data sets of a config, and check that their files exist."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DefaultScope

from mmsparse.checks.keywords import dataset_settings, find_class
from mmsparse.checks.signatures import parameters
from mmsparse.errors import MissingFileError, UsageError, format_error

IMAGE_FOLDERS = ('img', 'img_path', 'seg_map_path')  # keys of data_prefix


@dataclass(frozen=True)
class Data:
    """One data set of a config, built without reading its files."""

    loader: str  # train_dataloader, val_dataloader or test_dataloader
    path: str  # of its settings in the config
    settings: Mapping[str, Any]
    dataset: BaseDataset

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; empty if only the files have them."""
        return tuple(self.dataset.metainfo.get('classes') or ())

    @property
    def is_local(self) -> bool:
        """Whether its files are in the file system of this machine."""
        backend = (self.settings.get('backend_args') or {}).get('backend', 'local')
        if backend != 'local':
            return False
        roots = (self.settings.get('data_root'), self.settings.get('ann_file'))
        return not any('://' in str(root) for root in roots)

    @property
    def downloads_itself(self) -> bool:
        """Whether the class downloads its files when they are missing."""
        return getattr(self.dataset, 'download', False)


def read_datasets(cfg: Config, host: str, loader: str) -> list[Data]:
    """Build the data sets of a loader, also those in wrappers, without their files.

    Classes that do not derive from MMEngine's ``BaseDataset`` are skipped.
    """
    datasets = importlib.import_module(f'{host}.registry').DATASETS
    found = []
    with DefaultScope.overwrite_default_scope(host):
        for path, settings in dataset_settings(loader, cfg.get(loader)):
            cls = find_class(datasets, settings.get('type'))
            if cls is not None and issubclass(cls, BaseDataset):
                _check_metainfo(path, settings.get('metainfo'))
                built = _build(cls, path, settings)
                found.append(Data(loader, path, settings, built))
    return found


def build_dataset(settings: Mapping[str, Any], host: str) -> BaseDataset:
    """Build a data set without reading its files, and without a pipeline."""
    datasets = importlib.import_module(f'{host}.registry').DATASETS
    with DefaultScope.overwrite_default_scope(host):
        return _build(find_class(datasets, settings['type']), 'dataset', settings)


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
    if isinstance(classes, str) and not Path(classes).is_file():
        raise UsageError(
            f'{path}.metainfo.classes={classes!r} must be a tuple of names; for one '
            f"class write ('{classes}',)."
        )
    if classes is None and 'CLASSES' in metainfo:
        raise UsageError(
            f'{path}.metainfo.CLASSES has no effect in OpenMMLab 2.x; write classes '
            f'and palette in lower case.'
        )
    twice = [x for x in classes or () if list(classes).count(x) > 1]
    if twice:
        raise UsageError(f'{path}.metainfo.classes has {twice[0]!r} twice.')


def check_files(data: Data) -> None:
    """Raise MissingFileError unless folders and annotation file of a data set exist."""
    root = data.settings.get('data_root')
    if root and not Path(root).expanduser().exists():
        raise MissingFileError(
            f'{data.loader}: no data at {root}; put the data there or change '
            f'{data.path}.data_root.',
            root,
        )
    name = getattr(data.dataset, 'ann_file', '')
    if isinstance(name, str) and name and not Path(name).exists():
        raise MissingFileError(
            f'{data.path}.ann_file: no such file: {name}; {near(Path(name))}.', name
        )
    prefix = getattr(data.dataset, 'data_prefix', {})
    for key, folder in prefix.items() if isinstance(prefix, Mapping) else ():
        used = key in IMAGE_FOLDERS and isinstance(folder, str) and folder
        if used and not Path(folder).is_dir():
            raise MissingFileError(
                f'{data.path}.data_prefix.{key}: no such folder: {folder}; '
                f'{near(Path(folder))}.',
                folder,
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
            yield from folder.iterdir()
