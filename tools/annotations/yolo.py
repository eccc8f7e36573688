"""Boxes and polygons of YOLO: a text file per image, a line per object."""

from pathlib import Path

import numpy as np

from annotations.instances import Instance, LabelFile, enclosing_box
from annotations.problems import AnnotationError, Problem, Problems

BOX = 5  # values of a line: class, x and y of the center, width, height
TRIANGLE = 7  # class and three points, at least
MARGIN = 0.01  # that programs exceed 0 and 1 by, at the border


def read_yolo(path: Path, problems: Problems, classes: dict[int, str]) -> LabelFile:
    """Read a text file; coordinates are relative to the size of the image."""
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        problems.add(Problem.MALFORMED, f'{path}: {error}')
        return LabelFile(path)
    instances = []
    for number, line in enumerate(lines, start=1):
        place = f'{path}:{number}'
        if line.strip():
            with problems.at(place):
                instances.append(_instance(line, place, classes))
    return LabelFile(path, tuple(instances))


def _instance(line: str, place: str, classes: dict[int, str]) -> Instance:
    try:
        label, *values = np.array(line.split(), float)
    except ValueError:
        raise AnnotationError(
            Problem.MALFORMED, f'expected numbers, got {line!r}'
        ) from None
    count = len(values) + 1
    if count != BOX and (count < TRIANGLE or count % 2 == 0):
        raise AnnotationError(
            Problem.MALFORMED,
            f'expected class, x, y, width and height, or class and at least three '
            f'points x y, got {count} values',
        )
    if label not in classes:
        raise AnnotationError(Problem.UNKNOWN_CLASS, f'class {label:g}')
    values = np.array(values)
    outside = ~((values >= -MARGIN) & (values <= 1 + MARGIN))  # NaN too
    if outside.any():
        raise AnnotationError(Problem.OUT_OF_RANGE, f'{values[outside][0]:g}')
    if count > BOX:
        polygon = values.reshape(-1, 2)
        return Instance(classes[label], enclosing_box([polygon]), place, (polygon,))
    center, sides = values[:2], values[2:]
    box = np.concatenate([center - sides / 2, center + sides / 2])
    return Instance(classes[label], box, place)
