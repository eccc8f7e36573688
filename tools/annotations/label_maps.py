"""Write polygons as label maps for mmsegmentation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask

from annotations.draw import palette
from annotations.samples import Sample
from mmsparse.datasets.transforms import IGNORED
from mmsparse.errors import UsageError

BACKGROUND = 'background'


def write_label_maps(
    out: Path, samples: Sequence[Sample], classes: Sequence[str], images: Path
) -> None:
    """Write a PNG per image, with the index of a class in each pixel.

    Where objects overlap, the last one in the file is on top.
    """
    classes = with_background(classes)
    if len(classes) > IGNORED:
        raise UsageError(f'label maps have at most 255 classes; got {len(classes)}')
    labels = {name: index for index, name in enumerate(classes)}
    colors = [(0, 0, 0), *palette(len(classes) - 1)]
    for sample in samples:
        path = (out / sample.path.relative_to(images)).with_suffix('.png')
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(label_map(sample, labels))
        image.putpalette(np.ravel(colors).tolist())
        image.save(path)


def with_background(classes: Sequence[str]) -> list[str]:
    """Return the classes of label maps: pixels without object have the first."""
    return [BACKGROUND, *(name for name in classes if name != BACKGROUND)]


def label_map(sample: Sample, labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """Return the label of each pixel, (H, W)."""
    width, height = sample.size
    result = np.zeros((height, width), np.uint8)
    for instance in sample.instances:
        polygons = [polygon.ravel().tolist() for polygon in instance.polygons]
        runs = mask.merge(mask.frPyObjects(polygons, height, width))
        result[mask.decode(runs) == 1] = labels[instance.name]
    return result
