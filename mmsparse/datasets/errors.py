"""Name the file of an image, label map or annotation in every error about it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import imread
from mmengine.dataset import Compose

from mmsparse.datasets.transforms import IGNORED, CheckImage, CheckSegLabels
from mmsparse.errors import UsageError, format_error, original_message

READING = 'Replace the file, or remove it from the dataset.'
TRANSFORMING = 'Change the settings of this transform, or remove the file.'
FILES = ('img_path', 'seg_map_path', 'pan_seg_map_path', 'depth_map_path', 'ann_file')


class SampleError(UsageError):
    """An image or its annotation cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(original_message(message))


@contextmanager
def blame_files(*files: Any, step: str = '') -> Iterator[None]:
    """Raise any exception inside the context as a SampleError that names files.

    ``step`` is the operation that reads them, for the message.
    """
    try:
        yield
    except SampleError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise anything
        reason = format_error(error)
        if not isinstance(error, ValueError):
            reads = not step or step.startswith('Load')
            reason = f'{reason.rstrip(".")}. {READING if reads else TRANSFORMING}'
        elif any(str(file) in reason for file in files):
            raise SampleError(reason) from error
        names = ' and '.join(map(str, files))
        reason = ': '.join(filter(None, (names, step, reason)))
        raise SampleError(reason) from error


def check_image(path: str) -> None:
    """Raise SampleError unless a file is an image that can be decoded to its end.

    Any image is decoded to 8-bit colors: one of 16 bits, gray, with a palette, in CMYK,
    or with an alpha channel, which is dropped.
    """
    image = None
    with suppress(Exception):  # decoders raise anything
        image = imread(path)
    if image is None:
        raise SampleError(f'not a readable image: {path}')


@contextmanager
def blame_annotations(settings: Any) -> Iterator[None]:
    """Name the annotation files of data loaders or metrics in errors of building them.

    ``settings`` are theirs in a config.
    """
    with blame_files(*_annotation_files(settings)):
        yield


def _annotation_files(settings: Any, root: str = '') -> Iterator[str]:
    """Yield every ``ann_file`` in the settings of dataloaders or metrics."""
    if isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _annotation_files(value, root)
    elif isinstance(settings, Mapping):
        root = settings.get('data_root') or root
        if name := settings.get('ann_file'):
            yield str(Path(root, name))
        for key in ('dataset', 'datasets', 'metrics'):
            yield from _annotation_files(settings.get(key), root)


def name_sample_files(dataset: Any) -> None:
    """Name the files of a sample in errors of the transforms of a dataset, in place.

    A dataset also checks its images and, in mmseg, its label maps by
    :class:`~mmsparse.datasets.transforms.CheckImage` and
    :class:`~mmsparse.datasets.transforms.CheckSegLabels`.
    """
    for inner in getattr(dataset, 'datasets', ()):
        name_sample_files(inner)
    if hasattr(dataset, 'dataset'):
        name_sample_files(dataset.dataset)
    pipeline = getattr(dataset, 'pipeline', None)
    if isinstance(pipeline, Compose) and not isinstance(pipeline, NamingPipeline):
        dataset.pipeline = NamingPipeline(_with_checks(dataset))


def _with_checks(dataset: Any) -> list[Callable]:
    """Return a dataset's transforms, with checks after images and labels are loaded."""
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    segments = getattr(dataset, 'ignore_index', None) == IGNORED
    transforms = list(dataset.pipeline.transforms)
    present = set(map(type, transforms))
    checked = []
    for transform in transforms:
        checked.append(transform)
        name = type(transform).__name__
        if name == 'LoadImageFromFile' and CheckImage not in present:
            backend = getattr(transform, 'imdecode_backend', 'cv2')
            checked.append(CheckImage(backend))
        labeled = name == 'LoadAnnotations' and segments and classes
        if labeled and CheckSegLabels not in present:
            checked.append(CheckSegLabels(len(classes)))
    return checked


class NamingPipeline(Compose):
    """Pipeline whose errors name the files of the sample and the transform."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Transform a sample; return None if a transform drops it."""
        files = [data[name] for name in FILES if data.get(name)]
        for transform in self.transforms:
            with blame_files(*files, step=f'{type(transform).__name__}{_size(data)}'):
                data = transform(data)
            if data is None:
                return None
        return data


def _size(data: dict[str, Any]) -> str:
    image = data.get('img')
    if not isinstance(image, np.ndarray):
        return ''
    return f' of {image.shape[1]} x {image.shape[0]} pixels'
