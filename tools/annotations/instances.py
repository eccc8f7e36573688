"""An object of an image: its class, box and outline in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from annotations.problems import AnnotationError, Problem

Size = tuple[int, int]  # width and height
TOLERANCE = 0.01  # pixels, for coordinates that a file rounds


@dataclass(frozen=True)
class Instance:
    """An object of an image.

    Args:
        name: Name of its class.
        box: Left, top, right and bottom, (4,).
        place: File and line, for messages.
        polygons: Outlines of its parts, (N, 2) each; none for a box alone.
        crowd: Whether training and evaluation ignore it.
    """

    name: str
    box: NDArray[np.float64]
    place: str
    polygons: tuple[NDArray[np.float64], ...] = ()
    crowd: bool = False

    def scaled(self, size: Size) -> 'Instance':
        """Return an instance with coordinates relative to ``size`` in pixels."""
        return replace(
            self,
            box=self.box * (*size, *size),
            polygons=tuple(polygon * size for polygon in self.polygons),
        )

    def crosses(self, size: Size) -> bool:
        """Return whether a part is outside of an image of ``size``."""
        low, high = self.box[:2], self.box[2:] - size
        return bool(low.min() < -TOLERANCE or high.max() > TOLERANCE)

    def clipped(self, size: Size) -> 'Instance':
        """Return the part inside an image of ``size``.

        It raises AnnotationError if that is less than a pixel wide or high.
        """
        polygons = [clip_polygon(polygon, size) for polygon in self.polygons]
        polygons = [polygon for polygon in polygons if polygon_area(polygon) > 0]
        box = np.clip(self.box, 0, (*size, *size))
        if self.polygons and polygons:
            box = enclosing_box(polygons)
        if (box[2:] - box[:2]).min() < 1 or bool(self.polygons) != bool(polygons):
            raise AnnotationError(Problem.NO_AREA, f'{self.name} {shown(self.box)}')
        return replace(self, box=box, polygons=tuple(polygons))

    def area(self) -> float:
        """Return the area of the polygons, or of the box if there are none."""
        if self.polygons:
            return sum(polygon_area(polygon) for polygon in self.polygons)
        width, height = self.box[2:] - self.box[:2]
        return float(width * height)


@dataclass(frozen=True)
class LabelFile:
    """The objects of one label file.

    Args:
        path: The file.
        instances: Its objects.
        size: Width and height of the image as the file has them.
    """

    path: Path
    instances: tuple[Instance, ...] = ()
    size: Size | None = None


def enclosing_box(polygons: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    points = np.concatenate(polygons)
    return np.concatenate([points.min(0), points.max(0)])


def polygon_area(polygon: NDArray[np.float64]) -> float:
    """Return the area of a polygon by the shoelace formula."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def clip_polygon(polygon: NDArray[np.float64], size: Size) -> NDArray[np.float64]:
    """Return the part of a polygon inside an image, by Sutherland and Hodgman.

    Args:
        polygon: Points, (N, 2).
        size: Width and height of the image.

    Returns:
        Points, (M, 2); M is 0 if nothing is inside.
    """
    for axis, limit in enumerate(size):
        for sign, bound in ((1.0, 0.0), (-1.0, -float(limit))):
            polygon = _clip_half_plane(polygon, axis, sign, bound)
    return polygon.clip(0, size)  # of rounding errors


def _clip_half_plane(
    polygon: NDArray[np.float64], axis: int, sign: float, bound: float
) -> NDArray[np.float64]:
    """Keep the points with ``sign * coordinate >= bound``, and the cut edges."""
    kept = []
    for start, end in zip(np.roll(polygon, 1, axis=0), polygon, strict=True):
        before, after = (sign * point[axis] - bound for point in (start, end))
        if (before < 0) != (after < 0):
            kept.append(start + (end - start) * before / (before - after))
        if after >= 0:
            kept.append(end)
    return np.array(kept).reshape(-1, 2)


def shown(numbers: NDArray[np.float64]) -> str:
    return ' '.join(f'{number:g}' for number in numbers)
