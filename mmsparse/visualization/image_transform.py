"""Where the pixels of a picture lie in what a model is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Size = tuple[int, int]  # height and width
Pixels = NDArray[np.uint8]
SKIPPED = ('Annotations', 'SegLabels')  # a picture to look at has no ground truth


@dataclass(frozen=True)
class ImageTransform:
    """A picture, enlarged, mirrored, cut and padded, axis by axis.

    Coordinates are (x, y) in pixels; the first pixel reaches from 0 to 1. In what the
    model is given, they are ``scale`` times those of the picture, plus ``shift``.

    Args:
        picture: Height and width of the picture.
        size: Height and width of what the model is given, without the padding of the
            batch, which lies below and at the right.
        scale: Factors on x and y, negative where mirrored.
        shift: What is added to x and y.
    """

    picture: Size
    size: Size
    scale: tuple[float, float] = (1.0, 1.0)
    shift: tuple[float, float] = (0.0, 0.0)

    def to_input(self, points: Tensor) -> Tensor:
        """Points of the picture to those of the input, (..., 2)."""
        return points * points.new_tensor(self.scale) + points.new_tensor(self.shift)

    def to_picture(self, points: Tensor) -> Tensor:
        """Points of the input to those of the picture, (..., 2)."""
        return (points - points.new_tensor(self.shift)) / points.new_tensor(self.scale)

    def boxes_to_picture(self, boxes: Tensor) -> Tensor:
        """Boxes (x1, y1, x2, y2) of the input to those of the picture, (..., 4)."""
        corners = self.to_picture(boxes.unflatten(-1, (2, 2)))
        return torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)

    def check_point(self, point: tuple[float, float]) -> None:
        """Raise ValueError unless a point is on the picture, and seen by the model.

        Args:
            point: (x, y) in pixels of the picture.

        Raises:
            ValueError: It is not; tells the size of the picture.
        """
        x, y = point
        height, width = self.picture
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f'point must lie in the picture, which is {width} wide and {height} '
                f'high; got x={x:g} and y={y:g}.'
            )
        inside = self.to_input(torch.tensor([x, y], dtype=torch.double))
        ends = inside.new_tensor(self.size[::-1])
        if not ((inside >= 0) & (inside < ends)).all():
            corners = inside.new_tensor([[0, 0, *ends.tolist()]])
            seen = [round(x) for x in self.boxes_to_picture(corners)[0].tolist()]
            raise ValueError(
                f'point must lie in the part of the picture that the model is given, '
                f'x from {seen[0]} to {seen[2]} and y from {seen[1]} to {seen[3]}; got '
                f'x={x:g} and y={y:g}.'
            )

    def resized(self, size: Size) -> 'ImageTransform':
        """The frame after the input is resized."""
        ratios = [new / old for new, old in zip(size, self.size, strict=True)][::-1]
        return replace(self, size=size, **self._times(ratios))

    def mirrored(self, direction: str) -> 'ImageTransform':
        """The frame after a flip: ``horizontal``, ``vertical`` or ``diagonal``."""
        height, width = self.size
        across = direction in ('horizontal', 'diagonal')
        down = direction in ('vertical', 'diagonal')
        frame = replace(self, **self._times([-1 if across else 1, -1 if down else 1]))
        return frame._moved(width if across else 0, height if down else 0)

    def cut(self, top: int, left: int, size: Size) -> 'ImageTransform':
        """The frame after a cut or, with negative corners, after padding."""
        return replace(self._moved(-left, -top), size=size)

    def _times(self, ratios: Sequence[float]) -> dict[str, tuple[float, ...]]:
        return {
            name: tuple(x * r for x, r in zip(getattr(self, name), ratios, strict=True))
            for name in ('scale', 'shift')
        }

    def _moved(self, x: float, y: float) -> 'ImageTransform':
        return replace(self, shift=(self.shift[0] + x, self.shift[1] + y))


def run_pipeline(
    transforms: Sequence[Callable[[dict], dict]], path: str
) -> tuple[dict[str, Any], Pixels, ImageTransform]:
    """Prepare a picture for a model, and keep track of where its pixels go.

    Args:
        transforms: A host's pipeline for tests; what loads ground truth is left out.
        path: The file of the picture.

    Returns:
        What the pipeline makes of it, the picture itself as RGB, (H, W, 3), and the
        frame of what the model is given.

    Raises:
        ValueError: A transform moves the pixels in another way than by resizing, flips,
            cuts and padding.
    """
    results: dict[str, Any] = dict(img_path=path, img_id=0, sample_idx=0)
    picture, frame = None, None
    for transform in transforms:
        if type(transform).__name__.endswith(SKIPPED):
            continue
        before = results.get('img'), results.get('flip', False)
        results = transform(results)
        if 'img' not in results:
            continue
        if frame is None:
            picture = np.ascontiguousarray(results['img'][..., ::-1])  # BGR
            frame = ImageTransform(results['img'].shape[:2], results['img'].shape[:2])
        else:
            frame = _follow(frame, transform, *before, results)
    if picture is None or frame is None:
        raise ValueError('transforms must load a picture; got none that does.')
    return results, picture, frame


def _follow(
    frame: ImageTransform,
    transform: Any,
    before: Pixels,
    flipped: bool,
    results: dict[str, Any],
) -> ImageTransform:
    after = results['img']
    kinds = ' '.join(kind.__name__ for kind in type(transform).__mro__)
    if results.get('flip', False) and not flipped:
        return frame.mirrored(results['flip_direction'])
    if after.shape == before.shape:
        return frame
    if 'Crop' in kinds and 'Resize' not in kinds:
        return frame.cut(*_corner(before, after), after.shape[:2])
    if 'Pad' in kinds:
        top, left = _corner(after, before)
        return frame.cut(-top, -left, after.shape[:2])
    if 'Resize' in kinds and 'Crop' not in kinds:
        return frame.resized(after.shape[:2])
    raise ValueError(
        f'transforms must resize, flip, cut or pad the picture, one at a time, so that '
        f'its pixels can be followed; got {type(transform).__name__}.'
    )


def _corner(whole: Pixels, part: Pixels) -> tuple[int, int]:
    """Find the upper left corner of a part of a picture; the middle one first."""
    rooms = [w - p + 1 for w, p in zip(whole.shape[:2], part.shape[:2], strict=True)]
    if min(rooms) < 1:
        raise ValueError(
            f'A cut must lie in the picture of {whole.shape[:2]}; got {part.shape[:2]}.'
        )
    candidates = sorted(
        np.ndindex(*rooms),
        key=lambda x: sum(abs(2 * a + 1 - n) for a, n in zip(x, rooms, strict=True)),
    )
    height, width = part.shape[:2]
    for top, left in candidates:
        if (whole[top, left] == part[0, 0]).all() and np.array_equal(
            whole[top : top + height, left : left + width], part
        ):
            return top, left
    raise ValueError('A cut must be a part of the picture before it; got other pixels.')
