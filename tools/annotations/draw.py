"""Draw samples with their boxes, outlines and classes."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import matplotlib
import numpy as np
from mmcv import imread
from PIL import Image, ImageDraw, ImageFont

from annotations.instances import Instance
from annotations.samples import Sample

SMALLEST = 640  # pixels of the longer side; smaller images are enlarged
FONT = Path(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
GOLDEN = 0.618  # golden ratio: any number of hues far from each other

Color = tuple[int, int, int]
T = TypeVar('T')


def palette(number: int) -> list[Color]:
    """Return different colors."""
    hues = [index * GOLDEN % 1 for index in range(number)]
    return [
        tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.9, 1))
        for hue in hues
    ]


def draw_samples(
    out: Path,
    samples: Sequence[Sample],
    classes: Sequence[str],
    images: Path,
    number: int,
) -> None:
    """Draw some of the samples that have objects, in equal steps."""
    colors = dict(zip(classes, palette(len(classes)), strict=True))
    labeled = [sample for sample in samples if sample.instances]
    for sample in spread(labeled, number):
        path = (out / sample.path.relative_to(images)).with_suffix('.jpg')
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_sample(sample, colors).save(path, quality=90)


def spread(items: list[T], number: int) -> list[T]:
    """Return up to ``number`` items, in equal steps from the first to the last."""
    steps = np.linspace(0, len(items) - 1, min(number, len(items))).round()
    return [items[int(step)] for step in steps]


def draw_sample(sample: Sample, colors: dict[str, Color]) -> Image.Image:
    """Return an image with its objects, as mmcv loads it."""
    image = Image.fromarray(imread(sample.path, channel_order='rgb'))
    scale = max(1.0, SMALLEST / max(image.size))
    image = image.resize([round(scale * side) for side in image.size])
    draw = ImageDraw.Draw(image)
    for instance in sample.instances:
        _draw_instance(draw, instance, scale, colors[instance.name])
    return image


def _draw_instance(
    draw: ImageDraw.ImageDraw, instance: Instance, scale: float, color: Color
) -> None:
    left, top, right, bottom = (instance.box * scale).tolist()
    draw.rectangle((left, top, right, bottom), outline=color, width=2)
    for polygon in instance.polygons:
        points = list(map(tuple, (polygon * scale).tolist()))
        draw.line([*points, points[0]], fill=color, width=2)
    text = f'{instance.name} (ignored)' if instance.crowd else instance.name
    font = ImageFont.truetype(FONT, 13)
    place = (left + 2, max(0, top - 15))
    draw.rectangle(draw.textbbox(place, text, font), fill=color)
    draw.text(place, text, (0, 0, 0), font)
