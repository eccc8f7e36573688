"""Read image files of any type as 8-bit RGB of a moderate size; draw examples."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from digits.scenes import draw_scene
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.datasets import load_digits, load_sample_image

from mmsparse.errors import UsageError
from mmsparse.visualization.image_transform import Pixels, Size

LONGEST, SHORTEST = 640, 64  # pixels of an image's sides
MAX_RATIO = 8  # of the sides


def read_image(path: str | Path) -> Pixels:
    """Read an image file as RGB, (H, W, 3); large ones shrink, small ones grow.

    Images of 16 and 32 bits are scaled from their range, transparent ones are on white,
    and photos are turned as their EXIF tag says.

    Args:
        path: The file.

    Returns:
        The image.

    Raises:
        UsageError: The file is no image, is cut off, or has too many pixels or too
            different sides.
    """
    name = Path(path).name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            return _read(path, name)
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise UsageError(
            f'{name} has more than {limit:.0f} million pixels; upload a smaller one'
        ) from None
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError) as error:
        known = 'PNG, JPEG, WebP, TIFF or GIF'
        cut = not isinstance(error, UnidentifiedImageError)
        problem = 'is cut off or damaged' if cut else f'is no image of type {known}'
        raise UsageError(f'{name} {problem}; upload another file') from error


def _read(path: str | Path, name: str) -> Pixels:
    with Image.open(path) as image:
        width, height = image.size
        if max(image.size) > MAX_RATIO * min(image.size):
            raise UsageError(
                f'{name} must be at most {MAX_RATIO} times as long as wide; it has '
                f'{width} x {height} pixels'
            )
        image.draft('RGB', (2 * LONGEST, 2 * LONGEST))  # a JPEG is decoded smaller
        image = ImageOps.exif_transpose(image)
        if image.mode[0] in 'IF':
            image = Image.fromarray(_to_bytes(np.asarray(image, np.float64)))
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image).convert('RGB')
    size = fit((image.height, image.width), LONGEST, SHORTEST)
    return np.asarray(image.resize(size[::-1]))


def _to_bytes(values: np.ndarray) -> Pixels:
    finite = np.nan_to_num(values, nan=0, posinf=0, neginf=0)
    low, high = finite.min(), finite.max()
    return (255 * (finite - low) / max(high - low, 1e-12)).astype(np.uint8)


def fit(size: Size, longest: int, shortest: int) -> Size:
    """Scale a size, (height, width), to limits of its sides; the longer one decides."""
    factor = max(1, shortest / min(size))
    factor = min(factor, longest / max(size))
    height, width = (max(round(factor * side), 1) for side in size)
    return height, width


def examples() -> Iterator[tuple[str, Pixels]]:
    """Yield names and images: handwritten digits, and scikit-learn's two photos."""
    digits = load_digits()
    scans, labels = digits.images, digits.target
    every = np.arange(len(labels))
    scene, _ = draw_scene(scans, labels, every, 128, np.random.default_rng(3))
    yield 'digits', scene
    for name in ('flower', 'china'):
        yield name, load_sample_image(f'{name}.jpg')
