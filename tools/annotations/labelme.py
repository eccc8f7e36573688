"""Polygons, rectangles and circles of LabelMe: a JSON file per image."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotations.instances import Instance, LabelFile, Size, enclosing_box
from annotations.problems import AnnotationError, Problem, Problems

NO_AREA = ('point', 'points', 'line', 'linestrip', 'mask')
NO_CLASSES = ('__ignore__', '_background_')  # in LabelMe's lists of labels
CIRCLE_POINTS = 64


def read_labelme(path: Path, problems: Problems) -> LabelFile:
    """Read a JSON file; shapes with the same label and group are one object."""
    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'))
        shapes = content['shapes']
    except (ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ValueError) else 'expected shapes'
        problems.add(Problem.MALFORMED, f'{path}: {reason}')
        return LabelFile(path)
    objects: dict[Any, list[Instance]] = {}
    for number, shape in enumerate(shapes, start=1):
        place = f'{path}: shape {number}'
        with problems.at(place):
            instance = _instance(shape, place)
            group = shape.get('group_id')
            key = number if group is None else (instance.name, str(group))
            objects.setdefault(key, []).append(instance)
    return LabelFile(path, tuple(map(_merge, objects.values())), _size(content))


def _size(content: Mapping[str, Any]) -> Size | None:
    width, height = (content.get(f'image{side}') for side in ('Width', 'Height'))
    return (width, height) if width and height else None


def _instance(shape: Mapping[str, Any], place: str) -> Instance:
    try:
        name = str(shape['label']).strip()
        shape_type = shape.get('shape_type') or 'polygon'
        points = np.array(shape['points'], float).reshape(-1, 2)
    except (AttributeError, KeyError, TypeError, ValueError):
        points = np.array([np.nan])
    if not np.isfinite(points).all():
        raise AnnotationError(
            Problem.MALFORMED, 'expected label and points [[x, y], ...]'
        )
    if shape_type in NO_AREA:
        raise AnnotationError(Problem.NO_OUTLINE, shape_type)
    polygon = _outline(shape_type, points)
    return Instance(name, enclosing_box([polygon]), place, (polygon,))


def _outline(shape_type: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the outline of a shape, (N, 2)."""
    if shape_type == 'circle' and len(points) == 2:
        center, edge = points
        angles = np.linspace(0, 2 * np.pi, CIRCLE_POINTS, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return center + np.linalg.norm(edge - center) * circle
    if shape_type == 'rectangle' and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    if len(points) < 3:
        raise AnnotationError(
            Problem.MALFORMED, f'{shape_type} with {len(points)} points'
        )
    return points


def _merge(parts: list[Instance]) -> Instance:
    polygons = tuple(polygon for part in parts for polygon in part.polygons)
    return Instance(parts[0].name, enclosing_box(polygons), parts[0].place, polygons)
