"""Check class folders and label files of mmpretrain's CustomDataset."""

from collections.abc import Sequence
from pathlib import Path

from mmengine.registry import Registry

from mmsparse.checks.data import Data, listed, near
from mmsparse.checks.keywords import find_class
from mmsparse.errors import MissingFileError, UsageError


def uses_class_folders(data: Data, datasets: Registry) -> bool:
    """Return whether a data set takes its classes from folders, as CustomDataset."""
    custom = find_class(datasets, 'CustomDataset')
    dataset = data.dataset
    if custom is None or not isinstance(dataset, custom):
        return False
    methods = ('load_data_list', '_find_samples')
    own = all(getattr(type(dataset), x) is getattr(custom, x) for x in methods)
    return own and not dataset.ann_file and dataset.with_label


def uses_label_file(data: Data, datasets: Registry) -> bool:
    """Return whether a data set reads lines of ``file label``, as CustomDataset."""
    custom = find_class(datasets, 'CustomDataset')
    dataset = data.dataset
    if custom is None or not isinstance(dataset, custom):
        return False
    own = type(dataset).load_data_list is custom.load_data_list
    return own and bool(dataset.ann_file) and dataset.with_label


def class_folders(data: Data) -> tuple[str, ...]:
    """Return the class folders, in the order of their labels.

    MissingFileError is raised if the folder does not exist, UsageError if it has no
    folders or their names contradict the classes of the config.
    """
    root = Path(data.dataset.img_prefix)
    if not root.is_dir():
        raise MissingFileError(
            f'{data.path}.data_prefix: no such folder: {root}; {near(root)}', str(root)
        )
    folders = tuple(sorted(x.name for x in root.iterdir() if x.is_dir()))
    if not folders:
        raise UsageError(
            f'{data.path}: {root} must have one folder per class; it has none.'
        )
    classes = data.classes
    if classes and len(classes) != len(folders):
        own = 'classes' in (data.settings.get('metainfo') or {})
        advice = (
            'correct metainfo.classes'
            if own
            else "use type='CustomDataset', which takes the classes from the folders"
        )
        raise UsageError(
            f'{data.path}: {root} has {len(folders)} class folders '
            f'({listed(folders)}), but the data set has {len(classes)} classes; '
            f'{advice}.'
        )
    if classes and sorted(classes) == list(folders) != list(classes):
        raise UsageError(
            f'{data.path}.metainfo.classes must be in the order of the folders, '
            f'{listed(folders, 10)}, which numbers them; got {listed(classes, 10)}.'
        )
    return folders


def check_same_folders(train: Data, other: Data) -> None:
    """Raise UsageError unless two data sets have the same class folders."""
    known, found = class_folders(train), class_folders(other)
    if known == found:
        return
    missing = [x for x in known if x not in found]
    extra = [x for x in found if x not in known]
    parts = [f'without {listed(missing)}'] if missing else []
    parts += [f'with {listed(extra)}'] if extra else []
    raise UsageError(
        f'{other.path}: {other.dataset.img_prefix} has other class folders than '
        f'{train.dataset.img_prefix}, {" and ".join(parts)}, which shifts the labels; '
        f'create missing folders (they may be empty) and remove the others.'
    )


def empty_folders(data: Data) -> list[str]:
    """Return the class folders without an image."""
    root = Path(data.dataset.img_prefix)
    return [
        name
        for name in class_folders(data)
        if not any(data.dataset.is_valid_file(x.name) for x in (root / name).rglob('*'))
    ]


def read_labels(data: Data) -> Sequence[int]:
    """Read the labels of a file with lines of ``file label``."""
    path = data.dataset.ann_file
    labels = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        if not line.strip():
            continue
        text = line.rstrip().rpartition(' ')[2]
        if not text.isdecimal():
            raise UsageError(
                f'{path}, line {number}: must be FILE LABEL, with an integer from 0; '
                f'got {line.strip()!r:.80}.'
            )
        labels.append(int(text))
    if not labels:
        raise UsageError(f'{data.path}.ann_file: {path} is empty.')
    return labels
