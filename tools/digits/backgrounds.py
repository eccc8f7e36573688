"""Draw procedural backgrounds: float RGB in [0, 1], (H, W, 3).

Patterns are scalar fields in [0, 1], (H, W).
"""

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Array = NDArray[np.floating]


def draw_background(size: int, rng: Generator) -> Array:
    """Draw one surface, or two that meet at a wavy border like ground and sky."""
    materials = rng.choice(len(MATERIALS), 2, replace=False)
    far, near = (_draw_surface(MATERIALS[index], size, rng) for index in materials)
    if rng.random() < 0.4:
        return far
    height = ramp(size, rng) + 0.25 * _noise(size, 48, rng) - 0.125
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
    return 0.7 * ramp(size, rng) + 0.3 * _noise(size, 32, rng)


def _fibers(size: int, rng: Generator) -> Array:
    """Noise that is much longer than wide."""
    noise = _noise(size, rng.uniform(10, 24), rng)
    enlarged = size // 8 + 2  # columns, of which only the first are seen
    fibers = cv2.resize(noise[:, :enlarged], (8 * enlarged, size))[:, :size]
    return fibers if rng.random() < 0.5 else fibers.T


def _stripes(size: int, rng: Generator) -> Array:
    phase = size / rng.uniform(12, 30) * ramp(size, rng) + 0.4 * _noise(size, 64, rng)
    return 0.5 + 0.4 * np.tanh(rng.uniform(0.6, 4) * np.sin(2 * np.pi * phase))


def _waves(size: int, rng: Generator) -> Array:
    bend = rng.uniform(1, 2.5) * _noise(size, rng.uniform(24, 48), rng)
    phase = size / rng.uniform(12, 24) * ramp(size, rng) + bend
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


def ramp(size: int, rng: Generator) -> Array:
    """Rise from 0 to 1 across the image in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = _coordinates(size)
    slope = np.cos(angle) * columns + np.sin(angle) * rows
    return 0.5 + slope / (2 * slope.max())


@cache
def _coordinates(size: int) -> Array:
    """Return rows and columns from -0.5 to 0.5, (2, size, size)."""
    return np.indices((size, size)) / (size - 1) - 0.5


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
