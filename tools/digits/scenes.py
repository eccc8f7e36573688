"""Draw scenes of handwritten digits on procedural backgrounds.

Images are float RGB in [0, 1], (H, W, 3), until `finish`; alpha masks and scalar
fields are floats in [0, 1], (H, W). All randomness comes from the generator argument,
so that an image depends on its seed alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

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
    light = 1 + 0.16 * (_ramp(size, rng) - 0.5)
    grain = rng.normal(0, rng.uniform(0.002, 0.01), image.shape)
    return np.rint(255 * np.clip(image * light[..., None] + grain, 0, 1)).astype(
        np.uint8
    )


# Digits


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
    while True:
        glyph = render_glyph(scan, side, rng)
        height, width = glyph.shape
        for _ in range(30):
            alpha = np.zeros((size, size), np.float32)
            top = rng.integers(size - height + 1)
            left = rng.integers(size - width + 1)
            alpha[top : top + height, left : left + width] = glyph
            if all(_overlap_is_fine(digit, alpha > 0.5) for digit in below):
                return alpha
        side = max(SIZE_RANGE[0] + 1, int(side * 0.8))


def _overlap_is_fine(below: Digit, above: Mask) -> bool:
    left = below.mask & ~above
    if left.sum() < (1 - MAX_HIDDEN) * below.area or _side(left) < SIZE_RANGE[0]:
        return False
    first, second = tight_box(below.mask), tight_box(above)
    shared = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    smaller = min(np.prod(box[2:] - box[:2]) for box in (first, second))
    return np.prod(shared.clip(0)) <= MAX_BOX_OVERLAP * smaller


def _side(mask: Mask) -> int:
    left, top, right, bottom = tight_box(mask)
    return max(right - left, bottom - top)


def tight_box(mask: Mask) -> NDArray[np.integer]:
    """The box (left, top, right, bottom) around a mask, right and bottom exclusive."""
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
    large = _warp(_upscale(scan), rng)
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


def _upscale(scan: Array, factor: int = 20) -> Array:
    """Turn a scan into a smooth shape, (12 * factor, 12 * factor).

    The loops of many digits 6, 8 and 9 are only dips in the ink, which a plain
    threshold would fill: dips are deepened first, down to light gray.
    """
    ink = np.pad(scan, 2).astype(np.float32)
    dips = _fill_dips(ink) - ink
    ink = np.minimum(ink, np.maximum(ink - 4 * dips, 3)) / 16
    large = cv2.resize(ink, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
    return np.clip((large - 0.4) / 0.2 + 0.5, 0, 1)


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
    if rng.random() < 0.5:
        drop = np.float32([[1, 0, rng.uniform(-2, 2)], [0, 1, rng.uniform(0.5, 2.5)]])
        shadow = cv2.warpAffine(alpha, drop, alpha.shape[::-1])
        shadow = cv2.GaussianBlur(shadow, (0, 0), 1.2)
        image = image * (1 - rng.uniform(0.2, 0.5) * shadow[..., None])
    shade = 1 + rng.uniform(0, 0.3) * (_ramp(len(alpha), rng) - 0.5)
    fill = np.clip(color * shade[..., None], 0, 1)
    return image + alpha[..., None] * (fill - image)


def _contrasting_color(below: Array, others: list[Array], rng: Generator) -> Array:
    """Draw a color that is easy to distinguish from those around it.

    Args:
        below: Colors below the digit and near it, (P, 3).
        others: Colors of the other digits, each (3,).
        rng: Draws the color.
    """
    hsv = rng.uniform((0, 0.3, 0.25), (360, 1, 1), (24, 3)).astype(np.float32)
    candidates = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0]
    steps = _to_lab(candidates)[:, None] - _to_lab(below)  # (24, P, 3)
    # The 10th percentile: textures have several colors.
    contrast = np.minimum(
        np.percentile(abs(steps[..., 0]), 10, axis=1) / MIN_LIGHTNESS_STEP,
        np.percentile(np.linalg.norm(steps, axis=-1), 10, axis=1) / MIN_COLOR_STEP,
    )
    if others:
        steps = _to_lab(candidates)[:, None] - _to_lab(np.array(others))
        nearest = np.linalg.norm(steps, axis=-1).min(1)
        contrast = np.minimum(contrast, nearest / MIN_DIGIT_STEP)
    good = np.flatnonzero(contrast > 1)
    return candidates[good[0] if len(good) else contrast.argmax()]


def _to_lab(colors: Array) -> Array:
    return cv2.cvtColor(colors[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0]


# Backgrounds


def draw_background(size: int, rng: Generator) -> Array:
    """Draw one surface, or two that meet at a wavy border like ground and sky."""
    materials = rng.choice(len(MATERIALS), 2, replace=False)
    far, near = (_draw_surface(MATERIALS[index], size, rng) for index in materials)
    if rng.random() < 0.4:
        return far
    height = _ramp(size, rng) + 0.25 * _noise(size, 48, rng) - 0.125
    height = size * (height - rng.uniform(0.3, 0.7))  # about pixels from the border
    height = cv2.GaussianBlur(height, (0, 0), 1.5)
    shadow = 1 - 0.3 * np.exp(np.minimum(height, 0) / 3)
    inside = np.clip(height / 2 + 0.5, 0, 1)[..., None]
    return (1 - inside) * far * shadow[..., None] + inside * near


def _draw_surface(material: 'Material', size: int, rng: Generator) -> Array:
    colors, patterns = material
    pattern = patterns[rng.integers(len(patterns))]
    tone = 0.75 * pattern(size, rng) + 0.25 * _noise(size, 6, rng)
    tone = 0.5 + rng.uniform(0.6, 1) * (tone - 0.5)
    stops = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors])
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(tone, at, channel) for channel in stops.T], axis=-1)


def _clouds(size: int, rng: Generator) -> Array:
    return _noise(size, rng.uniform(24, 64), rng)


def _gradient(size: int, rng: Generator) -> Array:
    return 0.7 * _ramp(size, rng) + 0.3 * _noise(size, 32, rng)


def _fibers(size: int, rng: Generator) -> Array:
    """Noise that is much longer than wide."""
    noise = _noise(size, rng.uniform(10, 24), rng)
    fibers = cv2.resize(noise, (8 * size, size))[:, :size]
    return fibers if rng.random() < 0.5 else fibers.T


def _stripes(size: int, rng: Generator) -> Array:
    phase = size / rng.uniform(12, 30) * _ramp(size, rng) + 0.4 * _noise(size, 64, rng)
    return 0.5 + 0.4 * np.tanh(rng.uniform(0.6, 4) * np.sin(2 * np.pi * phase))


def _waves(size: int, rng: Generator) -> Array:
    bend = rng.uniform(1, 2.5) * _noise(size, rng.uniform(24, 48), rng)
    phase = size / rng.uniform(12, 24) * _ramp(size, rng) + bend
    return 0.5 + 0.5 * np.sin(2 * np.pi * phase)


def _checks(size: int, rng: Generator) -> Array:
    rows, columns = (np.indices((size, size)) + rng.integers(64)) // rng.integers(8, 24)
    soft = cv2.GaussianBlur(((rows + columns) % 2).astype(float), (0, 0), 0.7)
    return 0.5 + rng.uniform(0.3, 0.7) * (soft - 0.5)


def _bricks(size: int, rng: Generator) -> Array:
    """Tiles or staggered bricks with dark joints."""
    height = rng.integers(10, 25)
    width = height * rng.integers(1, 3)
    rows, columns = np.indices((size, size)) + rng.integers(64)
    columns = columns + rows // height % 2 * (width // 2)
    tones = rng.uniform(0.35, 1, (size, size))
    tone = tones[rows // height % size, columns // width % size]
    joints = (rows % height == 0) | (columns % width == 0)
    return cv2.GaussianBlur(np.where(joints, 0.1, tone), (0, 0), 0.6)


def _pebbles(size: int, rng: Generator) -> Array:
    """Stones: every pixel belongs to the nearest of scattered points."""
    points = rng.uniform(0, size, (int((size / rng.uniform(10, 20)) ** 2), 2))
    pixels = np.indices((size, size)).reshape(2, -1).T
    distance, nearest = cKDTree(points).query(pixels, k=2)  # (size * size, 2)
    tone = rng.uniform(0.4, 1, len(points))[nearest[:, 0]]
    joints = np.clip((distance[:, 1] - distance[:, 0]) / 3, 0.2, 1)
    return (tone * joints).reshape(size, size)


def _speckle(size: int, rng: Generator) -> Array:
    dots = (rng.random((size, size)) < rng.uniform(0.005, 0.03)).astype(float)
    dots = cv2.GaussianBlur(dots, (0, 0), rng.uniform(0.8, 1.6))
    return np.clip(0.5 + rng.choice((-0.5, 0.5)) * dots / dots.max(), 0, 1)


def _ramp(size: int, rng: Generator) -> Array:
    """Rise from 0 to 1 across the image in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.indices((size, size)) / (size - 1) - 0.5
    slope = np.cos(angle) * columns + np.sin(angle) * rows
    return 0.5 + slope / (2 * slope.max())


def _noise(size: int, cell: float, rng: Generator) -> Array:
    """Smooth noise: octaves from `cell` pixels down to three, 0 to 1."""
    total = np.zeros((size, size))
    weight = 1.0
    while cell >= 3:
        knots = rng.random((int(size / cell) + 3,) * 2)
        total += weight * cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC)
        weight, cell = weight / 2, cell / 2
    return (total - total.min()) / np.ptp(total)


Material = tuple[tuple[str, ...], tuple[Callable[[int, Generator], Array], ...]]

# Colors from dark to light, and possible patterns, of each material.
MATERIALS: tuple[Material, ...] = (
    (('#3f6b2a', '#5f8f3a', '#86ad55'), (_clouds, _fibers, _stripes)),  # grass
    (('#39492c', '#4d6038', '#6a7b4a'), (_clouds, _pebbles, _checks)),  # moss
    (('#1f4a34', '#2e6546', '#4b8560'), (_waves, _speckle, _clouds)),  # leaves
    (('#c2a26b', '#d6bb86', '#e8d5a8'), (_waves, _speckle, _gradient)),  # sand
    (('#4f3825', '#6b4c33', '#856446'), (_clouds, _stripes, _speckle)),  # earth
    (('#6ea7d8', '#94c1e6', '#cfe4f3'), (_clouds, _gradient)),  # sky
    (('#124b6b', '#1d6a8c', '#3f8fa8'), (_waves, _clouds, _bricks)),  # sea
    (('#141c33', '#222c4c', '#37446b'), (_speckle, _gradient)),  # night
    (('#4b535b', '#646d76', '#828b93'), (_pebbles, _bricks, _checks)),  # slate
    (('#c9d6e2', '#dfe8ef', '#f6f9fb'), (_clouds, _waves, _gradient)),  # snow
    (('#7d3a2b', '#98503c', '#b06a52'), (_bricks, _pebbles, _fibers)),  # brick
    (('#7a4f2b', '#9a6a3d', '#b98a58'), (_fibers, _waves, _bricks)),  # wood
    (('#cdb48c', '#dcc7a3', '#ead9bd'), (_fibers, _stripes, _checks)),  # birch
    (('#b9ab97', '#cdc1ae', '#e0d7c8'), (_checks, _pebbles, _stripes)),  # linen
    (('#6d6391', '#8a80ad', '#aba3c8'), (_stripes, _checks, _clouds)),  # lavender
    (('#a8596a', '#cf8276', '#eab28e'), (_gradient, _clouds, _waves)),  # dusk
)
