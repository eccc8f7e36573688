"""Track where a test pipeline moves the pixels of an image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Point = tuple[float, float]  # (x, y)
Size = tuple[int, int]  # height and width
Pixels = NDArray[np.uint8]
ANNOTATIONS = ('Annotations', 'SegLabels')  # transforms that load ground truth


@dataclass(frozen=True)
class ImageTransform:
    """Scaling, flipping, cropping and padding from an image to the model's input.

    Coordinates are (x, y) in pixels; the first pixel covers [0, 1). The point ``p`` of
    the image is at ``scale * p + shift`` in the input; a flip has a negative scale.
    """

    image_size: Size
    input_size: Size  # without the padding of the batch, at the right and the bottom
    scale: Point = (1.0, 1.0)
    shift: Point = (0.0, 0.0)

    def to_input(self, points: Tensor) -> Tensor:
        """Transform points of the image to points of the input, (..., 2)."""
        return points * points.new_tensor(self.scale) + points.new_tensor(self.shift)

    def to_image(self, points: Tensor) -> Tensor:
        """Transform points of the input to points of the image, (..., 2)."""
        return (points - points.new_tensor(self.shift)) / points.new_tensor(self.scale)

    def boxes_to_input(self, boxes: Tensor) -> Tensor:
        """Transform boxes (x1, y1, x2, y2) of the image to the input, (..., 4)."""
        return _sorted_corners(self.to_input(boxes.unflatten(-1, (2, 2))))

    def boxes_to_image(self, boxes: Tensor) -> Tensor:
        """Transform boxes (x1, y1, x2, y2) of the input to the image, (..., 4)."""
        return _sorted_corners(self.to_image(boxes.unflatten(-1, (2, 2))))

    def check_point(self, point: Point) -> None:
        """Raise ValueError unless a point of the image is inside the model's input."""
        x, y = point
        height, width = self.image_size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f'point must be inside the image of width {width} and height {height}; '
                f'got x={x:g}, y={y:g}.'
            )
        inside = self.to_input(torch.tensor([x, y], dtype=torch.double))
        ends = inside.new_tensor(self.input_size[::-1])
        if not ((inside >= 0) & (inside < ends)).all():
            borders = self.boxes_to_image(inside.new_tensor([0, 0, *ends.tolist()]))
            left, top, right, bottom = (round(x) for x in borders.tolist())
            raise ValueError(
                f'point must be inside the part of the image that is left after '
                f'cropping, x from {left} to {right} and y from {top} to {bottom}; got '
                f'x={x:g}, y={y:g}.'
            )

    def resized(self, size: Size) -> 'ImageTransform':
        """Return the transform after resizing the input."""
        height, width = (a / b for a, b in zip(size, self.input_size, strict=True))
        return self._then(scale=(width, height), size=size)

    def flipped(self, direction: str) -> 'ImageTransform':
        """Return the transform after a horizontal, vertical or diagonal flip."""
        height, width = self.input_size
        x, y = direction != 'vertical', direction != 'horizontal'
        return self._then((-1 if x else 1, -1 if y else 1), (width * x, height * y))

    def cropped(self, top: int, left: int, size: Size) -> 'ImageTransform':
        """Return the transform after cropping or, with negative corners, padding."""
        return self._then(shift=(-left, -top), size=size)

    def _then(
        self, scale: Point = (1, 1), shift: Point = (0, 0), size: Size | None = None
    ) -> 'ImageTransform':
        moved = (a * b + c for a, b, c in zip(self.shift, scale, shift, strict=True))
        scaled = (a * b for a, b in zip(self.scale, scale, strict=True))
        size = size or self.input_size
        return ImageTransform(self.image_size, size, tuple(scaled), tuple(moved))


def run_pipeline(
    transforms: Sequence[Callable[[dict], dict]], path: str
) -> tuple[dict[str, Any], Pixels, ImageTransform]:
    """Run a test pipeline on an image file and track its pixels.

    Transforms that load annotations are skipped. Return the results of the pipeline,
    the original image as RGB, (H, W, 3), and the transform from it to the input.
    ValueError is raised if a transform moves pixels other than by resizing, flipping,
    cropping or padding, or if none loads the image.
    """
    results: dict[str, Any] = dict(img_path=path, img_id=0, sample_idx=0)
    image, tracked = None, None
    for transform in transforms:
        if type(transform).__name__.endswith(ANNOTATIONS):
            continue
        before, flipped = results.get('img'), results.get('flip', False)
        results = transform(results)
        if 'img' not in results:
            continue
        if tracked is None:
            image = _to_rgb(results['img'])
            tracked = ImageTransform(image.shape[:2], image.shape[:2])
        elif results.get('flip', False) and not flipped:
            tracked = tracked.flipped(results['flip_direction'])
        elif results['img'].shape != before.shape:
            tracked = _track(tracked, transform, before, results['img'])
    if image is None or tracked is None:
        raise ValueError('transforms must load the image; got none that does.')
    return results, image, tracked


def _to_rgb(image: NDArray) -> Pixels:
    """Convert an image of mmcv to RGB: gray, or BGR and further channels."""
    image = image if image.ndim == 3 else image[..., None]
    few = image.shape[-1] < 3
    image = image[..., :1].repeat(3, axis=-1) if few else image[..., 2::-1]
    if image.dtype != np.uint8:  # of 16 bits, for example
        ends = image.min(), image.max()
        image = np.interp(image, ends, (0, 255)).astype(np.uint8)
    return np.ascontiguousarray(image)


def _track(
    tracked: ImageTransform, transform: Any, before: Pixels, after: Pixels
) -> ImageTransform:
    """Extend ``tracked`` by a transform that changed the size of the image."""
    classes = ' '.join(base.__name__ for base in type(transform).__mro__)
    if 'Crop' in classes and 'Resize' not in classes:
        return tracked.cropped(*_find_corner(before, after), after.shape[:2])
    if 'Pad' in classes:
        top, left = _find_corner(after, before)
        return tracked.cropped(-top, -left, after.shape[:2])
    if 'Resize' in classes and 'Crop' not in classes:
        return tracked.resized(after.shape[:2])
    raise ValueError(
        'transforms must resize, flip, crop or pad the image, one step each, so that '
        f'its pixels can be tracked; got {type(transform).__name__}.'
    )


def _find_corner(whole: Pixels, part: Pixels) -> Size:
    """Find the top left corner of ``part`` in ``whole``; a centered one first."""
    sizes = zip(whole.shape[:2], part.shape[:2], strict=True)
    counts = [max(w - p + 1, 0) for w, p in sizes]
    candidates = sorted(
        np.ndindex(*counts),
        key=lambda x: sum(abs(2 * a + 1 - n) for a, n in zip(x, counts, strict=True)),
    )
    height, width = part.shape[:2]
    for top, left in candidates:
        if (whole[top, left] == part[0, 0]).all() and np.array_equal(
            whole[top : top + height, left : left + width], part
        ):
            return top, left
    raise ValueError(
        'transforms that crop or pad must not change pixel values; found no match '
        f'between images of {whole.shape[:2]} and {part.shape[:2]} pixels.'
    )


def _sorted_corners(corners: Tensor) -> Tensor:
    return torch.cat([corners.amin(-2), corners.amax(-2)], dim=-1)
