"""Images with their objects, checked against each other."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from annotations.images import image_size
from annotations.instances import Instance, LabelFile, Size
from annotations.problems import Problem, Problems


@dataclass(frozen=True)
class Sample:
    """An image and its objects.

    Args:
        path: The image.
        size: Its width and height.
        instances: The objects, clipped to the image.
    """

    path: Path
    size: Size
    instances: tuple[Instance, ...]


def read_samples(
    images: Mapping[str, Path],
    labels: Mapping[str, LabelFile],
    classes: Collection[str],
    problems: Problems,
    relative: bool = False,
) -> list[Sample]:
    """Match images with label files by their names.

    Args:
        images: Images by name.
        labels: Label files by name.
        classes: Names of the known classes.
        problems: Where faults are recorded.
        relative: Whether coordinates are relative to the size of the image.

    Returns:
        The readable images with their valid objects.
    """
    samples = []
    for name, path in tqdm(
        images.items(), desc='images', disable=not sys.stderr.isatty()
    ):
        with problems.at(path):
            size = image_size(path)
            found = _instances(labels.get(name), path, size, problems, relative)
            known = [x for x in found if _is_known(x, classes, problems)]
            samples.append(Sample(path, size, tuple(known)))
    return samples


def _instances(
    label: LabelFile | None,
    path: Path,
    size: Size,
    problems: Problems,
    relative: bool,
) -> Sequence[Instance]:
    if label is None or not label.instances:
        problems.add(Problem.UNLABELED if label is None else Problem.EMPTY, path)
        return ()
    if label.size not in (None, size):
        width, height = label.size
        place = f'{label.path}: {width}x{height}, image {size[0]}x{size[1]}'
        problems.add(Problem.OTHER_SIZE, place)
    clipped = []
    for instance in label.instances:
        instance = instance.scaled(size) if relative else instance
        with problems.at(instance.place):
            clipped.append(instance.clipped(size))
            if instance.crosses(size):
                problems.add(Problem.CLIPPED, instance.place)
    return clipped


def _is_known(instance: Instance, classes: Collection[str], problems: Problems) -> bool:
    known = instance.name in classes
    if not known:
        problems.add(Problem.UNKNOWN_CLASS, f'{instance.place}: {instance.name}')
    return known
