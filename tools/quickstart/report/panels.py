"""Show predictions and ground truth: HTML, with SVG drawings over the images."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

import cv2
import numpy as np
from PIL import Image

from quickstart.report.boxes import Box, ink, match
from quickstart.report.sheet import decode

Sample = Mapping[str, Any]
Meta = Mapping[str, Any]  # of all samples: names and colors of the classes
WRONG = (229, 72, 77)
SHADE = (0, 0, 0, 150)  # of background
MIN_PIXELS = 30  # of a region that gets a name
LETTER = 9.0  # size of a name, in pixels of the image


def show_samples(predictions: Meta) -> str:
    """Show the samples of a task, and its mistakes as far as they are known."""
    samples, mistakes = predictions['samples'], predictions['mistakes']
    show = _show_tiles if isinstance(samples[0]['truth'], int) else _show_groups
    shown = show(samples, predictions)
    if mistakes:
        count = predictions['count_mistakes']
        some = f', {len(mistakes)} of {count}' if count > len(mistakes) else ''
        shown += f'<h4>Mistakes{some}</h4>{show(mistakes, predictions)}'
    return shown


def _show_tiles(samples: Sequence[Sample], meta: Meta) -> str:
    """Show small images with their predicted classes."""
    tiles = []
    for sample in samples:
        truth, guess = (escape(meta['classes'][sample[x]]) for x in ('truth', 'guess'))
        right, score = truth == guess, f'{sample["score"]:.0%}'
        what = f'{truth}, predicted {guess} ({score})'
        note = f'{score}' if right else f'{score}, is {truth}'
        tiles.append(
            f'<figure class="tile{"" if right else " wrong"}" title="{what}">'
            f'<img src="data:image/jpeg;base64,{sample["image"]}" alt="{what}">'
            f'<figcaption><b>{guess}</b> {note}</figcaption></figure>'
        )
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _show_groups(samples: Sequence[Sample], meta: Meta) -> str:
    """Show input, ground truth and prediction of each image side by side."""
    draw = _draw_labels if isinstance(samples[0]['truth'], str) else _draw_boxes
    groups = []
    for sample in samples:
        width, height = sample['size']
        image = (
            f'<image href="data:image/jpeg;base64,{sample["image"]}" '
            f'width="{width}" height="{height}"/>'
        )
        panels = [
            f'<figure><svg viewBox="0 0 {width} {height}" role="img">'
            f'<title>{caption}, {escape(sample["path"])}</title>{image}{drawn}</svg>'
            f'<figcaption>{caption}</figcaption></figure>'
            for caption, drawn in draw(sample, meta)
        ]
        groups.append(f'<div class="group">{"".join(panels)}</div>')
    return f'<div class="groups">{"".join(groups)}</div>'


def _draw_boxes(sample: Sample, meta: Meta) -> Iterator[tuple[str, str]]:
    truth, guess = sample['truth'], sample['guess']
    wrong, missed = match(truth, guess)
    yield 'input', ''
    yield 'ground truth', ''.join(_box(box, meta) for box in truth)
    found = [_box(box, meta, i in wrong) for i, box in enumerate(guess)]
    lost = [_rectangle(truth[i], 'class="missed"') for i in sorted(missed)]
    counts = [f'{len(wrong)} wrong'] * bool(wrong) + [f'{len(missed)} missed'] * bool(
        missed
    )
    yield f'prediction, {", ".join(counts) or "all right"}', ''.join(lost + found)


def _box(box: Box, meta: Meta, wrong: bool = False) -> str:
    name = meta['classes'][int(box[4])] + ' !' * wrong
    color = WRONG if wrong else meta['palette'][int(box[4])]
    style = f'class="box" style="stroke:{_rgb(color)}"'
    halo = _rectangle(box, 'class="halo"') if wrong else ''
    return halo + _rectangle(box, style) + _name(box[0], box[1], name, color)


def _rectangle(box: Box, style: str) -> str:
    x1, y1, x2, y2 = box[:4]
    at = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
    return f'<rect {at} {style}/>'


def _name(x: float, y: float, name: str, color: Sequence[int]) -> str:
    """Write a name into a filled rectangle, above a point if there is place."""
    width, height = LETTER * (0.6 * len(name) + 0.4), LETTER * 1.15
    y = y - height if y >= height else y
    return (
        f'<rect x="{x - 0.6:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{height:.1f}" fill="{_rgb(color)}"/>'
        f'<text x="{x - 0.6 + width / 2:.1f}" y="{y + LETTER * 0.9:.1f}" '
        f'font-size="{LETTER}" fill="{ink(color)}">{escape(name)}</text>'
    )


def _draw_labels(sample: Sample, meta: Meta) -> Iterator[tuple[str, str]]:
    truth, guess = (np.asarray(decode(sample[x])) for x in ('truth', 'guess'))
    yield 'input', ''
    yield 'ground truth', _regions(truth, meta)
    wrong = truth != guess
    marks = np.full((*wrong.shape, 4), SHADE, np.uint8)
    marks[wrong] = (*WRONG, 255)
    drawn = _regions(guess, meta)
    yield 'prediction', drawn
    share = f'{wrong.mean():.1%}'.replace('%', ' %')
    yield f'wrong pixels: {share}', _overlay(marks)


def _regions(labels: np.ndarray, meta: Meta) -> str:
    """Color all classes but the first, the background, and name their regions."""
    colors = np.array([(*color, 255) for color in meta['palette']], np.uint8)
    colors[0] = SHADE
    drawn = [_overlay(colors[labels])]
    for label in np.unique(labels[labels > 0]):
        mask = (labels == label).astype(np.uint8)
        count, _, sizes, centers = cv2.connectedComponentsWithStats(mask)
        for i in range(1, count):
            if sizes[i, cv2.CC_STAT_AREA] >= MIN_PIXELS:
                x, y = sizes[i, cv2.CC_STAT_LEFT], sizes[i, cv2.CC_STAT_TOP]
                name, color = meta['classes'][label], meta['palette'][label]
                drawn.append(_name(float(x), float(y), name, color))
    return ''.join(drawn)


def _overlay(pixels: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    height, width = pixels.shape[:2]
    return (
        f'<image class="overlay" href="data:image/png;base64,{data}" '
        f'width="{width}" height="{height}"/>'
    )


def _rgb(color: Sequence[int]) -> str:
    return '#' + ''.join(f'{channel:02x}' for channel in color)
