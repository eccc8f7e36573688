"""One image with input, ground truth and prediction of each task."""

import base64
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quickstart.predictions import spread
from quickstart.report.boxes import ink, match
from quickstart.report.section import Section

PANEL, MARGIN, TITLE = 480, 24, 44  # pixels
COLUMNS = ('input', 'ground truth', 'prediction')
WRONG = '#e5484d'


def draw_sheet(sections: Mapping[str, Section]) -> Image.Image:
    """Draw a row for each task that has predictions."""
    rows = {task: x.predictions for task, x in sections.items() if x.predictions}
    size = (3 * (PANEL + MARGIN) + MARGIN, len(rows) * (PANEL + TITLE) + MARGIN)
    sheet = Image.new('RGB', size, 'white')
    pen = ImageDraw.Draw(sheet)
    for i, (task, predictions) in enumerate(rows.items()):
        top = i * (PANEL + TITLE)
        for j, panel in enumerate(draw_row(predictions)):
            left = MARGIN + j * (PANEL + MARGIN)
            title = f'{task}: {COLUMNS[j]}'
            at = (left, top + TITLE - 8)
            pen.text(at, title, fill='#1a1d21', font=font(22), anchor='ls')
            sheet.paste(panel, (left, top + TITLE))
    return sheet


def draw_row(predictions: Mapping[str, Any]) -> list[Image.Image]:
    """Draw the three panels of a task, squares of as many samples as fit."""
    samples = predictions['samples']
    side = math.isqrt(len(samples))
    panels = [Image.new('RGB', (PANEL, PANEL), 'white') for _ in COLUMNS]
    gap = 4
    tile = (PANEL - gap * (side - 1)) // side
    for i, sample in enumerate(spread(samples, side**2)):
        at = (i % side * (tile + gap), i // side * (tile + gap))
        image = decode(sample['image']).convert('RGB')
        image = image.resize((tile, tile), Image.Resampling.BICUBIC)
        drawn = draw_sample(image, sample, predictions)
        for panel, tile_image in zip(panels, (image, *drawn), strict=True):
            panel.paste(tile_image, at)
    return panels


def draw_sample(
    image: Image.Image, sample: Mapping[str, Any], meta: Mapping[str, Any]
) -> tuple[Image.Image, Image.Image]:
    """Draw ground truth and prediction onto an enlarged image."""
    truth, guess = sample['truth'], sample['guess']
    if isinstance(truth, int):
        names, right = meta['classes'], guess == truth
        return (
            with_class(image, names[truth], 'white'),
            with_class(image, names[guess], 'white' if right else WRONG),
        )
    if isinstance(truth, str):
        return tuple(with_labels(image, x, meta['palette']) for x in (truth, guess))
    wrong, _ = match(truth, guess)
    zoom = image.width / sample['size'][0]
    return (
        with_boxes(image, truth, meta, zoom, ()),
        with_boxes(image, guess, meta, zoom, wrong),
    )


def with_class(image: Image.Image, name: str, color: str) -> Image.Image:
    """Write the name of a class into a corner."""
    drawn = image.copy()
    ImageDraw.Draw(drawn).text(
        (6, 2), name, fill=color, font=font(30), stroke_width=3, stroke_fill='black'
    )
    if color == WRONG:
        corners = (0, 0, image.width - 1, image.height - 1)
        ImageDraw.Draw(drawn).rectangle(corners, outline=WRONG, width=5)
    return drawn


def with_labels(
    image: Image.Image, labels: str, palette: Sequence[Sequence[int]]
) -> Image.Image:
    """Color the classes; background stays as it is, but darker."""
    index = np.asarray(decode(labels).resize(image.size, Image.Resampling.NEAREST))
    colors = np.array(palette, dtype=np.uint8)[index]
    pixels = np.asarray(image) // 3
    return Image.fromarray(np.where(index[..., None] > 0, colors, pixels))


def with_boxes(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    meta: Mapping[str, Any],
    zoom: float,
    wrong: Sequence[int] | set[int],
) -> Image.Image:
    """Draw boxes with the names of their classes; wrong ones are red, with a cross."""
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    for i, (*corners, label) in enumerate(boxes):
        color = WRONG if i in wrong else tuple(meta['palette'][label])
        corners = [x * zoom for x in corners]
        if i in wrong:
            around = [
                x + shift for x, shift in zip(corners, (-2, -2, 2, 2), strict=True)
            ]
            pen.rectangle(around, outline='white', width=8)
        pen.rectangle(corners, outline=color, width=4)
        name = meta['classes'][label] + ' x' * (i in wrong)
        anchor = corners[0], max(corners[1] - 26, 0)
        left, top, right, bottom = pen.textbbox(anchor, name, font=font(24))
        pen.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=color)
        fill = 'white' if i in wrong else ink(color)
        pen.text(anchor, name, fill=fill, font=font(24))
    return drawn


def decode(text: str) -> Image.Image:
    """Read an image from base64."""
    return Image.open(BytesIO(base64.b64decode(text)))


def font(size: int) -> ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
