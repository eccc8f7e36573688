"""Draw scenes of handwritten digits.

Images are float RGB in [0, 1], (H, W, 3), until `finish`; alpha masks are floats in
[0, 1], (H, W). All randomness comes from the generator argument, so that an image
depends on its seed alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from digits.backgrounds import Array, draw_background, ramp

Mask = NDArray[np.bool_]
Box = NDArray[np.integer]  # left, top, right, bottom; right and bottom exclusive

SIZE_RANGE = (16, 64)  # longer side of a digit's tight box
MAX_HIDDEN = 0.1  # fraction of a digit that later ones may cover
MAX_BOX_OVERLAP = 0.2  # intersection of two boxes, relative to the smaller one
MIN_LIGHTNESS_STEP = 22  # between a digit and its surroundings, of 100 (CIELAB)
MIN_COLOR_STEP = 50  # the same for the color
MIN_DIGIT_STEP = 30  # between the colors of two digits


@dataclass(frozen=True)
class Digit:
    """A digit in a scene.

    Args:
        scan: Index among scikit-learn's scans.
        label: 0 to 9.
        mask: Its visible pixels, (H, W).
        area: Number of pixels without occlusion.
    """

    scan: int
    label: int
    mask: Mask
    area: int


def draw_scene(
    scans: Array,
    labels: NDArray[np.integer],
    choice: NDArray[np.integer],
    size: int,
    rng: Generator,
) -> tuple[NDArray[np.uint8], list[Digit]]:
    """Paste two to six of the chosen scans on a background.

    Args:
        scans: All scans, 0 (paper) to 16 (ink), (S, 8, 8).
        labels: 0 to 9, (S,).
        choice: Indices of the scans to choose from.
        size: Height and width of the scene.
        rng: Random generator.

    Returns:
        The image, (H, W, 3), and its digits from bottom to top.
    """
    picked = rng.choice(choice, rng.integers(2, 7), replace=False)
    image = draw_background(size, rng)
    digits: list[Digit] = []
    for scan, side in zip(picked, _draw_sides(len(picked), rng), strict=True):
        alpha = _place(scans[scan], side, size, digits, rng)
        image = paint(image, alpha, digits, rng)
        cover = alpha > 0.5
        digits = [replace(digit, mask=digit.mask & ~cover) for digit in digits]
        digits.append(Digit(int(scan), int(labels[scan]), cover, int(cover.sum())))
    return finish(image, rng), digits


def draw_single(
    scan: Array, size: int, sides: tuple[int, int], rng: Generator
) -> NDArray[np.uint8]:
    """Paste one scan, (8, 8), at a random size within `sides`, on a background."""
    side = int(rng.integers(sides[0], sides[1] + 1))
    alpha = _place(scan, side, size, [], rng)
    return finish(paint(draw_background(size, rng), alpha, [], rng), rng)


def finish(image: Array, rng: Generator) -> NDArray[np.uint8]:
    """Light the image from one side, add camera noise and quantize."""
    size = len(image)
    light = 1 + 0.16 * (ramp(size, rng) - 0.5)
    grain = rng.normal(0, rng.uniform(0.002, 0.01), image.shape)
    return np.rint(255 * np.clip(image * light[..., None] + grain, 0, 1)).astype(
        np.uint8
    )


def _draw_sides(count: int, rng: Generator) -> list[int]:
    """Draw the digits' sizes, largest first: it is the hardest to place."""
    # One pixel inside the range, because rendering may round outward.
    sides = rng.integers(SIZE_RANGE[0] + 1, SIZE_RANGE[1], count)
    return sorted(sides.tolist(), reverse=True)


def _place(
    scan: Array, side: int, size: int, below: list[Digit], rng: Generator
) -> Array:
    """Render a scan at a location where it hides little; shrink it if none is found.

    Returns:
        Alpha mask of the scene, (size, size).
    """
    boxes = [tight_box(digit.mask) for digit in below]
    while True:
        glyph = render_glyph(scan, side, rng)
        height, width = glyph.shape
        for _ in range(30):
            alpha = np.zeros((size, size), np.float32)
            top = rng.integers(size - height + 1)
            left = rng.integers(size - width + 1)
            alpha[top : top + height, left : left + width] = glyph
            above = alpha > 0.5
            if all(
                map(partial(_overlap_is_fine, above, tight_box(above)), below, boxes)
            ):
                return alpha
        side = max(SIZE_RANGE[0] + 1, int(side * 0.8))


def _overlap_is_fine(above: Mask, box: Box, below: Digit, box_below: Box) -> bool:
    shared = np.minimum(box[2:], box_below[2:]) - np.maximum(box[:2], box_below[:2])
    if shared.min() <= 0:
        return True
    smaller = min(np.prod(corners[2:] - corners[:2]) for corners in (box, box_below))
    if np.prod(shared) > MAX_BOX_OVERLAP * smaller:
        return False
    left = below.mask & ~above
    return left.sum() >= (1 - MAX_HIDDEN) * below.area and _side(left) >= SIZE_RANGE[0]


def _side(mask: Mask) -> int:
    left, top, right, bottom = tight_box(mask)
    return max(right - left, bottom - top)


def tight_box(mask: Mask) -> Box:
    """Return the box around a mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def render_glyph(scan: Array, side: int, rng: Generator) -> Array:
    """Draw a scan large, rotate and shear it slightly, and resize it.

    Args:
        scan: One scan, 0 to 16, (8, 8).
        side: Longer side of the tight box around alpha > 0.5.
        rng: Draws rotation and shear.

    Returns:
        Alpha mask with antialiased border, (h, w).
    """
    large = _warp(_upscale(scan.tobytes()), rng)
    left, top, right, bottom = tight_box(large > 0.5)
    zoom = side / max(right - left, bottom - top)
    # Center the tight box on a grid of the final size plus a margin of one pixel.
    width, height = (int(np.ceil(zoom * n)) + 2 for n in (right - left, bottom - top))
    shift_x = width / 2 - zoom * (left + right) / 2
    shift_y = height / 2 - zoom * (top + bottom) / 2
    blurred = cv2.GaussianBlur(large, (0, 0), 0.4 / zoom)  # antialiasing
    # Pixel centers are at half-integers.
    offset = 0.5 * zoom - 0.5
    matrix = np.array([[zoom, 0, shift_x + offset], [0, zoom, shift_y + offset]])
    small = cv2.warpAffine(blurred, matrix, (width, height), flags=cv2.INTER_LINEAR)
    left, top, right, bottom = tight_box(small > 0.5)
    return small[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]


@lru_cache(maxsize=1)  # for the next image of the same scan
def _upscale(scan: bytes, factor: int = 20) -> Array:
    """Turn the bytes of a scan into a smooth shape, (12 * factor, 12 * factor)."""
    ink = _deepen_dips(scan) / 16
    large = cv2.resize(ink, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return np.clip((large - 0.4) / 0.2 + 0.5, 0, 1)


@cache
def _deepen_dips(scan: bytes) -> Array:
    """Return a scan with a margin, and with dips in the ink down to light gray.

    The loops of many digits 6, 8 and 9 are only such dips, which a plain threshold
    would fill.
    """
    ink = np.pad(np.frombuffer(scan).reshape(8, 8), 2).astype(np.float32)
    dips = _fill_dips(ink) - ink
    return np.minimum(ink, np.maximum(ink - 4 * dips, 3))


def _fill_dips(ink: Array) -> Array:
    """Raise every pixel to the lowest ink that encloses it (flood filling)."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    level = np.pad(np.full_like(ink[1:-1, 1:-1], ink.max()), 1)
    while True:
        lower = np.maximum(ink, cv2.erode(level, cross))
        if (lower == level).all():
            return level
        level = lower


def _warp(alpha: Array, rng: Generator) -> Array:
    """Rotate by up to 12 degrees, shear, and change the aspect ratio a little."""
    angle = np.deg2rad(rng.uniform(-12, 12))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]])
    shear = np.array([[rng.uniform(0.9, 1.2), rng.uniform(-0.2, 0.2)], [0, 1]])
    linear = turn @ shear
    center = np.full(2, (len(alpha) - 1) / 2)
    matrix = np.column_stack([linear, center - linear @ center])
    return cv2.warpAffine(alpha, matrix, alpha.shape[::-1], flags=cv2.INTER_LINEAR)


def paint(image: Array, alpha: Array, digits: Sequence[Digit], rng: Generator) -> Array:
    """Paint a digit onto an image in a contrasting color, often with a shadow."""
    around = cv2.dilate(alpha, np.ones((7, 7), np.uint8)) > 0.5
    others = [image[digit.mask].mean(0) for digit in digits]
    color = _contrasting_color(image[around][::4], others, rng)
    # Shadows reach 9 pixels: 2.5 of offset, 1 of interpolation and 5 of blur.
    left, top, right, bottom = tight_box(alpha > 0)
    window = np.s_[max(top - 9, 0) : bottom + 9, max(left - 9, 0) : right + 9]
    image = image.copy()
    part = image[window]
    if rng.random() < 0.5:
        drop = np.float32([[1, 0, rng.uniform(-2, 2)], [0, 1, rng.uniform(0.5, 2.5)]])
        shadow = cv2.warpAffine(alpha, drop, alpha.shape[::-1])
        shadow = cv2.GaussianBlur(shadow, (0, 0), 1.2)
        part *= 1 - rng.uniform(0.2, 0.5) * shadow[window][..., None]
    shade = 1 + rng.uniform(0, 0.3) * (ramp(len(alpha), rng)[window] - 0.5)
    part += alpha[window][..., None] * (np.clip(color * shade[..., None], 0, 1) - part)
    return image


def _contrasting_color(below: Array, others: list[Array], rng: Generator) -> Array:
    """Draw a color that is easy to distinguish from those around it.

    Args:
        below: Colors below the digit and near it, (P, 3).
        others: Colors of the other digits, each (3,).
        rng: Draws the color.
    """
    hsv = rng.uniform((0, 0.3, 0.25), (360, 1, 1), (24, 3)).astype(np.float32)
    candidates = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    lab = _to_lab(candidates)[..., None]  # (3, 24, 1)
    steps = lab - _to_lab(below)[:, None]  # (3, 24, P)
    # The 10th percentile: textures have several colors.
    contrast = np.minimum(
        np.percentile(abs(steps[0]), 10, axis=1) / MIN_LIGHTNESS_STEP,
        np.percentile(np.linalg.norm(steps, axis=0), 10, axis=1) / MIN_COLOR_STEP,
    )
    if others:
        steps = lab - _to_lab(np.array(others))[:, None]
        nearest = np.linalg.norm(steps, axis=0).min(1)
        contrast = np.minimum(contrast, nearest / MIN_DIGIT_STEP)
    good = np.flatnonzero(contrast > 1)
    return candidates[good[0] if len(good) else contrast.argmax()]


def _to_lab(colors: Array) -> Array:
    """Convert RGB colors, (P, 3), to CIELAB, (3, P)."""
    return cv2.cvtColor(colors[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0].T
