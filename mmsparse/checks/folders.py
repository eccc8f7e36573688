"""Check class folders and label files of mmpretrain's CustomDataset."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.fileio import list_from_file
from mmengine.registry import Registry

from mmsparse.checks.data import (
    IMAGES,
    Data,
    listed,
    missing_files,
    near,
    read_dataset_json,
)
from mmsparse.checks.keywords import find_class
from mmsparse.errors import MissingFileError, UsageError

# Folders of tools, which would be classes, as any whose name begins with a dot.
NO_CLASSES = ('__MACOSX', '__pycache__', '@eaDir')
MOST_FILES = 100_000  # of a list, to find before training


class Sample(NamedTuple):
    """An image of a list, with its labels."""

    image: Path
    labels: Sequence[int]


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
    root = _image_folder(data)
    if not root.is_dir():
        raise MissingFileError(
            f'{data.path}.data_prefix: no such folder: {root}; {near(root)}', str(root)
        )
    folders = tuple(sorted(x.name for x in root.iterdir() if x.is_dir()))
    if not folders:
        raise UsageError(
            f'{data.path}: {root} must have one folder per class; it has none.'
        )
    for name in folders:
        if name.startswith('.') or name in NO_CLASSES:
            raise UsageError(
                f'{data.path}: the folder {root / name} would be a class; remove it.'
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
    valid = data.dataset.is_valid_file
    return [x for x in class_folders(data) if not any(map(valid, _files(data, x)))]


def unused_images(data: Data) -> list[str]:
    """Return the images in class folders that have another extension."""
    return [
        f'{folder}/{name}'
        for folder in class_folders(data)
        for name in _files(data, folder)
        if name.lower().endswith(IMAGES) and not data.dataset.is_valid_file(name)
    ]


def _files(data: Data, folder: str) -> Iterator[str]:
    """Yield the files that mmpretrain finds in a class folder."""
    for _, _, names in os.walk(_image_folder(data) / folder, followlinks=True):
        yield from (name for name in names if not name.startswith('.'))


def _image_folder(data: Data) -> Path:
    prefix = data.dataset.data_prefix
    if 'img_path' not in prefix:
        raise UsageError(
            f'{data.path}.data_prefix must have the key img_path; got '
            f'{", ".join(prefix)}.'
        )
    return Path(prefix['img_path'])


def read_lines(data: Data) -> list[Sample]:
    """Read a file with lines of ``file label``."""
    path, folder = data.dataset.ann_file, _image_folder(data)
    if Path(path).is_dir():
        raise UsageError(f'{data.path}.ann_file: {path} is a folder.')
    try:
        lines = list_from_file(path)
    except UnicodeDecodeError as error:
        raise UsageError(
            f'{data.path}.ann_file: {path} must be UTF-8: {error}.'
        ) from error
    samples = []
    for number, line in enumerate(lines, start=1):
        name, _, label = line.strip().rpartition(' ')
        if not name or not label.isdecimal():
            raise UsageError(
                f'{path}, line {number}: must be FILE LABEL, with a space and an '
                f'integer from 0; got {line.strip()!r:.80}.'
            )
        samples.append(Sample(folder / name, [int(label)]))
    return samples


def read_data_list(data: Data) -> list[Sample]:
    """Read the images with labels of a JSON file of MMEngine."""
    folder, samples = _image_folder(data), []
    for number, item in enumerate(read_dataset_json(data)['data_list']):
        if not isinstance(item, Mapping) or 'img_path' not in item:
            raise UsageError(
                f'{data.dataset.ann_file}: data_list[{number}] must have img_path; got '
                f'{item!r:.80}.'
            )
        samples.append(Sample(folder / item['img_path'], _labels(item)))
    return samples


def _labels(item: Mapping[str, Any]) -> list[int]:
    found = item.get('gt_label')
    labels = found if isinstance(found, list) else [found]
    return labels if all(type(x) is int for x in labels) else []


def check_samples(
    data: Data, samples: Sequence[Sample], model: Mapping[str, Any]
) -> list[str]:
    """Raise UsageError unless labels fit the classes and images exist.

    Args:
        data: The data set.
        samples: Its samples.
        model: The model, whose head has the number of classes if there are no names.

    Returns:
        Classes without images, as a note.
    """
    path, names = data.dataset.ann_file, data.classes
    if not samples:
        raise UsageError(f'{data.path}.ann_file: {path} is empty.')
    labels = {label for sample in samples for label in sample.labels}
    number = len(names) or (model.get('head') or {}).get('num_classes')
    if type(number) is int and max(labels, default=0) >= number:
        raise UsageError(
            f'{data.path}.ann_file: {path} has the label {max(labels)}, but there are '
            f'{number} classes: labels must be from 0 to {number - 1}.'
        )
    is_local = '://' not in str(data.dataset.data_prefix)
    found = is_local and len(samples) <= MOST_FILES  # else it takes long
    images = [sample.image for sample in samples] if found else []
    if missing := missing_files(images):
        raise MissingFileError(
            f'{data.path}: {len(missing)} of {len(samples)} images of {path} do not '
            f'exist, the first is {missing[0]}; correct data_prefix, to which the '
            f'names are relative, or the file.',
            str(missing[0]),
        )
    unused = [name for i, name in enumerate(names) if i not in labels]
    if not labels or not unused:
        return []
    return [f'{data.path}: no image of the classes {listed(unused, 10)}.']
