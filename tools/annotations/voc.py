"""Boxes of PASCAL VOC: an XML file per image."""

from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from annotations.instances import Instance, LabelFile, Size
from annotations.problems import AnnotationError, Problem, Problems

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


def read_voc(path: Path, problems: Problems, one_based: bool) -> LabelFile:
    """Read an XML file.

    Args:
        path: The file.
        problems: Where its faults are recorded.
        one_based: Whether coordinates are indices of pixels from 1, both included, not
            distances from the border.

    Returns:
        Its objects.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        problems.add(Problem.MALFORMED, f'{path}: {error}')
        return LabelFile(path)
    instances = []
    for number, element in enumerate(root.iterfind('object'), start=1):
        place = f'{path}: object {number}'
        with problems.at(place):
            instances.append(_instance(element, place, one_based))
            if instances[-1].crowd:
                problems.add(Problem.DIFFICULT, place)
    with problems.at(path):
        _check_root(root)
    return LabelFile(path, tuple(instances), _size(root))


def _check_root(root: Element) -> None:
    if root.tag != 'annotation':
        raise AnnotationError(
            Problem.MALFORMED, f'expected <annotation>, got <{root.tag}>'
        )


def _size(root: Element) -> Size | None:
    """Return the image's size; some programs write none, or zeros."""
    sides = [root.findtext(f'size/{side}', '0').strip() for side in ('width', 'height')]
    width, height = (int(side) if side.isdecimal() else 0 for side in sides)
    return (width, height) if width and height else None


def _instance(element: Element, place: str, one_based: bool) -> Instance:
    name = element.findtext('name', '').strip()
    if not name:
        raise AnnotationError(Problem.MALFORMED, 'expected <name>')
    texts = [element.findtext(f'bndbox/{corner}') for corner in CORNERS]
    try:
        box = np.array([float(text) for text in texts])
    except (TypeError, ValueError):
        raise AnnotationError(
            Problem.MALFORMED, f'expected numbers xmin, ymin, xmax, ymax, got {texts}'
        ) from None
    if not np.isfinite(box).all() or (box[2:] < box[:2]).any():
        raise AnnotationError(
            Problem.MALFORMED, f'expected xmin <= xmax and ymin <= ymax, got {texts}'
        )
    difficult = element.findtext('difficult', '0').strip() == '1'
    return Instance(
        name, box - one_based * np.array([1, 1, 0, 0]), place, (), difficult
    )
