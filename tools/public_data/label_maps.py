"""Label maps of public data sets: read with checks, and written with colors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmsparse.errors import UsageError


def read_label_map(path: Path, image: Path) -> NDArray[np.uint8]:
    """Return the label of each pixel of an image, (H, W), or raise UsageError."""
    try:
        labels = np.array(Image.open(path))
    except FileNotFoundError:
        raise UsageError(f'{image} has no label map {path}') from None
    size = Image.open(image).size
    if labels.shape != size[::-1]:
        raise UsageError(
            f'{path}: expected one label for each pixel of an image of size '
            f'{size[0]}x{size[1]}, got an array of shape {labels.shape}'
        )
    return labels


def save_label_map(
    labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]], path: Path
) -> None:
    """Save a label map with the colors of the first labels, for viewers."""
    palette = np.zeros((256, 3), np.uint8)  # all: of fewer, pillow saves 4 bits a pixel
    palette[: len(colors)] = colors
    image = Image.fromarray(labels)
    image.putpalette(palette.ravel().tolist())
    image.save(path)


def blend(
    image: Path, labels: NDArray[np.uint8], colors: Sequence[tuple[int, int, int]]
) -> Image.Image:
    """Return an image with the color of each label over it."""
    pixels = np.asarray(Image.open(image).convert('RGB'))
    over = (pixels + np.array(colors, np.float64)[labels]) / 2
    return Image.fromarray(over.astype(np.uint8))
