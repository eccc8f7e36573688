"""Faults of pictures and labels, told with the names of their files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import imread
from mmengine.dataset import Compose
from mmengine.runner import Runner

from mmsparse.datasets.transforms import IGNORED, CheckSegLabels
from mmsparse.errors import UsageError, format_error

ADVICE = 'Replace the file, or take it out of the data.'
FILES = ('img_path', 'seg_map_path', 'pan_seg_map_path', 'depth_map_path', 'ann_file')


class SampleError(ValueError):
    """A picture, or what belongs to it, cannot be used."""


@contextmanager
def blame_files(*files: Any, step: str = '') -> Iterator[None]:
    """Let whatever fails tell the files that it fails on.

    Args:
        *files: Their names.
        step: What is done with them.

    Yields:
        Nothing.

    Raises:
        SampleError: Something failed; names the files and the reason.
    """
    try:
        yield
    except SampleError:
        raise
    except Exception as error:  # noqa: BLE001 - pictures fail in any way
        names, reason = ' and '.join(map(str, files)), _reason(error)
        if not (isinstance(error, ValueError) and any(str(x) in reason for x in files)):
            reason = ': '.join(filter(None, (names, step, reason)))
        raise SampleError(reason) from error


def _reason(error: Exception) -> str:
    reason = format_error(error)
    if isinstance(error, ValueError):
        return reason
    return f'{reason.rstrip(".")}. {ADVICE}'


def check_files(*paths: str) -> None:
    """Find out before a model is built that there is nothing to run it on.

    Args:
        *paths: Pictures and a checkpoint.

    Raises:
        UsageError: One is missing.
    """
    for path in paths:
        if not Path(path).is_file():
            raise UsageError(f'no such file: {path}')


def check_names(pictures: Sequence[str]) -> None:
    """Find out that what is drawn of one picture would replace that of another.

    Args:
        pictures: Their files, after whose names the drawings are named.

    Raises:
        UsageError: Two have the same name, whatever their folders and suffixes.
    """
    named: dict[str, str] = {}
    for path in pictures:
        stem = Path(path).stem
        if stem in named:
            raise UsageError(
                f'{named[stem]} and {path} have the same name, and so would what is '
                'drawn of them; draw them in two runs, each with another --out'
            )
        named[stem] = path


def check_picture(path: str) -> None:
    """Raise SampleError unless a file is a picture that can be read to its end.

    What can be read is read as 8-bit colors, whatever it is: of 16 bits, gray, with
    a palette, for print (CMYK) or with transparency, which is dropped.

    Args:
        path: The file.

    Raises:
        SampleError: It is not; names it.
    """
    try:
        picture = imread(path)
    except Exception as error:  # noqa: BLE001 - pictures fail in any way
        raise SampleError(f'not a readable picture: {path}') from error
    if picture is None:
        raise SampleError(f'not a readable picture: {path}')


def name_files(runner: Runner) -> None:
    """Let a runner's data tell the files that they fail on, in all processes.

    Data sets of mmsegmentation also check their label maps, see
    :class:`~mmsparse.datasets.transforms.CheckSegLabels`.

    Args:
        runner: Has built no data yet; gets other methods for that.
    """
    build_loader, build_evaluator = runner.build_dataloader, runner.build_evaluator

    def named_loader(settings: Any, *args: Any, **kwargs: Any) -> Any:
        with blame_files(*_files_of(settings)):
            loader = build_loader(settings, *args, **kwargs)
        _name_files_of(loader.dataset)
        return loader

    def named_evaluator(settings: Any) -> Any:
        with blame_files(*_files_of(settings)):
            return build_evaluator(settings)

    runner.build_dataloader, runner.build_evaluator = named_loader, named_evaluator


def _files_of(settings: Any, root: str = '') -> Iterator[str]:
    """Annotation files that the settings of data or metrics name."""
    if isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _files_of(value, root)
    elif isinstance(settings, Mapping):
        root = settings.get('data_root') or root
        if name := settings.get('ann_file'):
            yield str(Path(root, name))
        for key in ('dataset', 'datasets', 'metrics'):
            yield from _files_of(settings.get(key), root)


def _name_files_of(dataset: Any) -> None:
    for inner in getattr(dataset, 'datasets', ()):
        _name_files_of(inner)
    if hasattr(dataset, 'dataset'):
        _name_files_of(dataset.dataset)
    if isinstance(getattr(dataset, 'pipeline', None), Compose):
        dataset.pipeline = NamingPipeline(_with_check(dataset))


def _with_check(dataset: Any) -> list[Callable]:
    """The transforms of a data set, with a check of label maps after their loading."""
    transforms = list(dataset.pipeline.transforms)
    classes = getattr(dataset, 'metainfo', {}).get('classes')
    loads = [type(x).__name__ == 'LoadAnnotations' for x in transforms]
    checked = any(isinstance(x, CheckSegLabels) for x in transforms)
    of_pixels = getattr(dataset, 'ignore_index', None) == IGNORED
    if of_pixels and classes and any(loads) and not checked:
        transforms.insert(loads.index(True) + 1, CheckSegLabels(len(classes)))
    return transforms


class NamingPipeline(Compose):
    """Transforms that tell the files of the sample that they fail on."""

    def __call__(self, data: dict[str, Any]) -> dict[str, Any] | None:
        """Prepare one sample.

        Args:
            data: What is known of it.

        Returns:
            The sample; None if a transform gives it up.

        Raises:
            SampleError: A transform fails; names the files and the transform.
        """
        files = [data[name] for name in FILES if data.get(name)]
        for transform in self.transforms:
            with blame_files(*files, step=f'{type(transform).__name__}{_size(data)}'):
                data = transform(data)
            if data is None:
                return None
        return data


def _size(data: dict[str, Any]) -> str:
    picture = data.get('img')
    if not isinstance(picture, np.ndarray):
        return ''
    return f' of {picture.shape[1]} x {picture.shape[0]} pixels'
