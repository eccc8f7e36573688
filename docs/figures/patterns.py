"""Draw the attention patterns that the pages of the methods explain.

Run it from anywhere: the pictures go to docs/images.
"""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

IMAGES = Path(__file__).resolve().parents[1] / 'images'
CELLS = 8  # a side of the map
QUERY, OTHER, KEY, PALE, LINE = '#c0392b', '#8e44ad', '#1f77b4', '#cfe2f3', '#b0b0b0'
plt.rcParams.update({'font.family': 'DejaVu Sans', 'font.size': 10})


def main() -> None:
    for name, draw in (
        ('deformable_attention', draw_deformable_attention),
        ('routed_attention', draw_routed_attention),
        ('shunted_attention', draw_shunted_attention),
        ('multi_scale_deformable_attention', draw_multi_scale),
        ('focus_attention', draw_focus),
    ):
        path = IMAGES / f'{name}.png'
        draw().savefig(path, dpi=150, bbox_inches='tight', facecolor='white')
        print(path)


def draw_deformable_attention() -> plt.Figure:
    """DAT: a regular grid of keys moves, and all queries attend to the moved keys."""
    figure, axes = maps('the grid', 'moved by offsets', 'seen by every query')
    for ax in axes:
        ax.add_patch(plt.Circle((5.2, 4.6), 1.9, color='#f6d8a8', lw=0))
    steps = np.arange(1.0, CELLS, 2)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    away = np.array([5.2, 4.6]) - grid
    moved = grid + away * (0.75 * np.exp(-np.hypot(*away.T) / 4))[:, None]
    axes[0].plot(*grid.T, 'o', mfc='white', mec=KEY)
    axes[1].plot(*grid.T, 'o', mfc='white', mec=LINE)
    for start, end in zip(grid, moved, strict=True):
        arrow = dict(arrowstyle='-|>', color=KEY, shrinkA=3, shrinkB=0)
        axes[1].annotate('', end, start, arrowprops=arrow)
    for query, color in (((0.5, 5.5), QUERY), ((6.5, 0.5), OTHER)):
        for key in moved:
            axes[2].plot(*zip(query, key, strict=True), color=color, lw=0.6, alpha=0.6)
        star(axes[2], query, color)
    axes[2].plot(*moved.T, 'o', color=KEY)
    return figure


def draw_routed_attention() -> plt.Figure:
    """BiFormer: a region picks regions, and its queries attend to their tokens."""
    figure, axes = maps('means of regions', 'the best two', 'attention to their tokens')
    chosen, query = ((4, 2), (6, 6)), (1.5, 2.5)
    centers = [(x + 1, y + 1) for x in range(0, CELLS, 2) for y in range(0, CELLS, 2)]
    axes[0].plot(*zip(*centers, strict=True), 's', color=KEY)
    for x, y in chosen:
        paint(axes[1], [(x, y)], PALE, side=2)
        arrow = dict(arrowstyle='-|>', color=QUERY, lw=1.5)
        axes[1].annotate('', (x + 1, y + 1), (1, 3), arrowprops=arrow)
        tokens = [(x + i, y + j) for i in (0, 1) for j in (0, 1)]
        paint(axes[2], tokens, PALE)
        for token in tokens:
            end = (token[0] + 0.5, token[1] + 0.5)
            axes[2].plot(*zip(query, end, strict=True), color=QUERY, lw=0.8)
            axes[2].plot(*end, 'o', color=KEY)
    for ax in axes:
        ax.grid(False)
        cut(ax, 2)
        ax.add_patch(Rectangle((0, 2), 2, 2, fill=False, ec=QUERY, lw=2, zorder=3))
    star(axes[2], query, QUERY)
    return figure


def draw_shunted_attention() -> plt.Figure:
    """Shunted Transformer: one half of the heads sees coarse keys, the other fine."""
    figure, axes = maps('queries', 'coarse heads', 'fine heads')
    query = (2.5, 5.5)
    centers = [(x + 0.5, y + 0.5) for x in range(CELLS) for y in range(CELLS)]
    axes[0].plot(*zip(*centers, strict=True), '.', color=LINE)
    for ax, side in ((axes[1], 4), (axes[2], 2)):
        cut(ax, side)
        for x in range(0, CELLS, side):
            for y in range(0, CELLS, side):
                paint(ax, [(x, y)], PALE, side=side)
                end = (x + side / 2, y + side / 2)
                ax.plot(*zip(query, end, strict=True), color=QUERY, lw=0.8)
                ax.plot(*end, 's', color=KEY, markersize=3 + 2 * side)
    for ax in axes:
        star(ax, query, QUERY)
    return figure


def draw_multi_scale() -> plt.Figure:
    """Deformable DETR: every query has points of its own on the maps of all levels."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
    rng = np.random.default_rng(3)
    queries = ((0.3, 0.62), QUERY), ((0.75, 0.25), OTHER)
    for ax, cells, stride in zip(axes, (16, 8, 4), (8, 16, 32), strict=True):
        frame(ax, cells, f'stride {stride}')
        for place, color in queries:
            query = np.multiply(place, cells)
            points = query + rng.normal(0, 0.09, (4, 2)) * cells
            points = points.clip(0.3, cells - 0.3)
            for point, weight in zip(points, rng.dirichlet([2] * 4), strict=True):
                ax.plot(*zip(query, point, strict=True), color=color, lw=0.8)
                ax.plot(*point, 'o', color=color, markersize=3 + 12 * weight)
            star(ax, query, color)
    return figure


def draw_focus() -> plt.Figure:
    """Focus-DETR: tokens of all levels are scored, and each layer keeps fewer."""
    corners = {16: (0, 0), 8: (17, 0), 4: (17, 9)}  # of a level by its cells a side
    spots = ((0.22, 0.7), 0.1), ((0.62, 0.38), 0.26)  # centers and radii of objects
    places, scores = score_levels(corners, spots)
    ranked = places[scores.argsort()[::-1]]
    objects = ranked[[0, 1, 2, 9, 20]]  # five that a class head might rank first
    layers = {
        'layer 1: the best half': 1,
        'layer 2: 80 % of these': 0.8,
        'layers 3 and 4: 60 %': 0.6,
        'layer 5: 40 %': 0.4,
        'layer 6: 20 %': 0.2,
    }

    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout='compressed')
    for ax, title in zip(axes.flat, ('scores on three levels', *layers), strict=True):
        ax.set(xlim=(-0.2, 25.2), ylim=(16.2, -0.2), aspect='equal', title=title)
        ax.axis('off')
        for cells, corner in corners.items():
            ax.add_patch(Rectangle(corner, cells, cells, fill=False, ec=LINE))
            for center, radius in spots:
                center = np.multiply(center, cells) + corner
                ax.add_patch(plt.Circle(center, radius * cells, color='#f6d8a8', lw=0))
    axes.flat[0].scatter(*places.T, s=14 * scores, color=KEY, lw=0)
    for ax, part in zip(axes.flat[1:], layers.values(), strict=True):
        kept = ranked[: int(len(ranked) / 2 * part)]
        ax.scatter(*kept.T, s=6, color=KEY, lw=0)
        for pair in combinations(objects, 2):
            ax.plot(*zip(*pair, strict=True), color=QUERY, lw=0.6)
        ax.plot(*objects.T, 'o', color=QUERY, markersize=4)
    return figure


def score_levels(
    corners: dict[int, tuple[int, int]],
    spots: Iterable[tuple[tuple[float, float], float]],
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the tokens of all levels, (N, 2), and how much they are foreground.

    Every object fits the level best on which it is four cells wide.
    """
    rng = np.random.default_rng(1)
    places, scores = [], []
    for cells, corner in corners.items():
        steps = np.arange(cells) + 0.5
        centers = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        score = rng.uniform(0, 0.08, len(centers))
        for center, radius in spots:
            fit = np.exp(-(np.log2(2 * radius * cells / 4) ** 2) / 8)
            distance = np.hypot(*(centers / cells - center).T) / radius
            score = np.maximum(score, fit * np.exp(-(distance**2)))
        places.append(centers + corner)
        scores.append(score)
    return np.concatenate(places), np.concatenate(scores)


def maps(*titles: str) -> tuple[plt.Figure, Iterable[Axes]]:
    """Empty maps of CELLS x CELLS side by side."""
    figure, axes = plt.subplots(1, len(titles), figsize=(9, 3.3))
    for ax, title in zip(axes, titles, strict=True):
        frame(ax, CELLS, title)
    return figure, axes


def frame(ax: Axes, cells: int, title: str) -> None:
    ax.set(xlim=(0, cells), ylim=(cells, 0), aspect='equal', title=title)
    ax.set_xticks(range(cells + 1), labels=[])
    ax.set_yticks(range(cells + 1), labels=[])
    ax.tick_params(length=0)
    ax.grid(color='#e6e6e6', lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[:].set_color(LINE)


def cut(ax: Axes, side: int) -> None:
    """Lines between squares of cells."""
    for place in range(side, CELLS, side):
        ax.axhline(place, color=LINE, lw=1.2)
        ax.axvline(place, color=LINE, lw=1.2)


def paint(
    ax: Axes, corners: Iterable[tuple[int, int]], color: str, side: int = 1
) -> None:
    for corner in corners:
        square = Rectangle(corner, side, side, fc=color, ec=LINE, lw=0.8, zorder=0.5)
        ax.add_patch(square)


def star(ax: Axes, place: Iterable[float], color: str) -> None:
    ax.plot(*place, '*', color=color, markersize=15, mec='white', zorder=4)


if __name__ == '__main__':
    main()
