"""Draw the attention patterns for the pages of the methods, to docs/images."""

from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

IMAGES = Path(__file__).resolve().parents[1] / 'images'
CELLS = 8  # per side of the feature map
CORNERS = {16: (0, 0), 8: (17, 0), 4: (17, 9)}  # of a level by its cells per side
OBJECTS = ((0.22, 0.7), 0.1), ((0.62, 0.38), 0.26)  # centers and radii
QUERY, OTHER, KEY, PALE, LINE = '#c0392b', '#8e44ad', '#1f77b4', '#cfe2f3', '#b0b0b0'
plt.rcParams.update({'font.family': 'DejaVu Sans', 'font.size': 10})


def main() -> None:
    for name, draw in (
        ('deformable_attention', draw_deformable_attention),
        ('routed_attention', draw_routed_attention),
        ('shunted_attention', draw_shunted_attention),
        ('multi_scale_deformable_attention', draw_multi_scale),
        ('focus_attention', draw_focus),
        ('stripe_attention', draw_stripes),
        ('dilated_attention', draw_dilation),
        ('reduced_keys', draw_reduced_keys),
        ('agent_attention', draw_agents),
        ('sparse_attention', draw_sparse),
    ):
        path = IMAGES / f'{name}.png'
        draw().savefig(path, dpi=150, bbox_inches='tight', facecolor='white')
        print(path)


def draw_deformable_attention() -> plt.Figure:
    """DAT: keys are sampled at a grid plus offsets; all queries attend to all keys."""
    titles = ('uniform grid', 'plus learned offsets', 'shared by all queries')
    figure, axes = feature_maps(*titles)
    for ax in axes:
        ax.add_patch(plt.Circle((5.2, 4.6), 1.9, color='#f6d8a8', lw=0))
    steps = np.arange(1.0, CELLS, 2)
    grid = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    inward = np.array([5.2, 4.6]) - grid
    keys = grid + inward * (0.75 * np.exp(-np.hypot(*inward.T) / 4))[:, None]
    axes[0].plot(*grid.T, 'o', mfc='white', mec=KEY)
    axes[1].plot(*grid.T, 'o', mfc='white', mec=LINE)
    for start, end in zip(grid, keys, strict=True):
        arrow = dict(arrowstyle='-|>', color=KEY, shrinkA=3, shrinkB=0)
        axes[1].annotate('', end, start, arrowprops=arrow)
    for query, color in (((0.5, 5.5), QUERY), ((6.5, 0.5), OTHER)):
        for key in keys:
            axes[2].plot(*zip(query, key, strict=True), color=color, lw=0.6, alpha=0.6)
        star(axes[2], query, color)
    axes[2].plot(*keys.T, 'o', color=KEY)
    return figure


def draw_routed_attention() -> plt.Figure:
    """BiFormer: a region routes to regions, and its queries attend to their tokens."""
    titles = ('region means', 'top-2 regions', 'attention to their tokens')
    figure, axes = feature_maps(*titles)
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
        draw_borders(ax, 2)
        ax.add_patch(Rectangle((0, 2), 2, 2, fill=False, ec=QUERY, lw=2, zorder=3))
    star(axes[2], query, QUERY)
    return figure


def draw_shunted_attention() -> plt.Figure:
    """Shunted Transformer: half of the heads have coarse keys, the other half fine."""
    figure, axes = feature_maps(
        'queries', 'heads with coarse keys', 'heads with fine keys'
    )
    query = (2.5, 5.5)
    centers = [(x + 0.5, y + 0.5) for x in range(CELLS) for y in range(CELLS)]
    axes[0].plot(*zip(*centers, strict=True), '.', color=LINE)
    for ax, side in ((axes[1], 4), (axes[2], 2)):
        draw_borders(ax, side)
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
    """Deformable DETR: every query has its own sampling locations on all levels."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.3))
    rng = np.random.default_rng(3)
    queries = ((0.3, 0.62), QUERY), ((0.75, 0.25), OTHER)
    for ax, cells, stride in zip(axes, (16, 8, 4), (8, 16, 32), strict=True):
        draw_cells(ax, cells, f'stride {stride}')
        for position, color in queries:
            query = np.multiply(position, cells)
            points = query + rng.normal(0, 0.09, (4, 2)) * cells
            points = points.clip(0.3, cells - 0.3)
            for point, weight in zip(points, rng.dirichlet([2] * 4), strict=True):
                ax.plot(*zip(query, point, strict=True), color=color, lw=0.8)
                ax.plot(*point, 'o', color=color, markersize=3 + 12 * weight)
            star(ax, query, color)
    return figure


def draw_focus() -> plt.Figure:
    """Focus-DETR: tokens of all levels are scored, and each layer keeps fewer."""
    centers, scores = score_levels(CORNERS, OBJECTS)
    ranked = centers[scores.argsort()[::-1]]
    object_tokens = ranked[[0, 1, 2, 9, 20]]  # five, as if ranked by a class head
    layers = {
        'layer 1: top 50%': 1,
        'layer 2: 80% of these': 0.8,
        'layers 3 and 4: 60%': 0.6,
        'layer 5: 40%': 0.4,
        'layer 6: 20%': 0.2,
    }

    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6), layout='compressed')
    for ax, title in zip(
        axes.flat, ('foreground scores on 3 levels', *layers), strict=True
    ):
        draw_levels(ax, title)
    axes.flat[0].scatter(*centers.T, s=14 * scores, color=KEY, lw=0)
    for ax, part in zip(axes.flat[1:], layers.values(), strict=True):
        kept = ranked[: int(len(ranked) / 2 * part)]
        ax.scatter(*kept.T, s=6, color=KEY, lw=0)
        for pair in combinations(object_tokens, 2):
            ax.plot(*zip(*pair, strict=True), color=QUERY, lw=0.6)
        ax.plot(*object_tokens.T, 'o', color=QUERY, markersize=4)
    return figure


def draw_stripes() -> plt.Figure:
    """CSWin: half of the heads have horizontal, half vertical stripes; axial: lines."""
    figure, axes = feature_maps(
        'horizontal stripes', 'vertical stripes', 'columns, then rows'
    )
    query = (2.5, 5.5)
    draw_keys(axes[0], query, [(x, y) for x in range(CELLS) for y in (4, 5)])
    draw_keys(axes[1], query, [(x, y) for x in (2, 3) for y in range(CELLS)])
    draw_keys(axes[2], query, [(x, 5) for x in range(CELLS)])
    for position in range(2, CELLS, 2):
        axes[0].axhline(position, color=LINE, lw=1.6)
        axes[1].axvline(position, color=LINE, lw=1.6)
    for x in range(CELLS):
        paint(axes[2], [(x, y) for y in range(CELLS) if y != 5], '#f1f6fc')
        arrow = dict(arrowstyle='-|>', color=OTHER, lw=0.8, shrinkA=0, shrinkB=2)
        for start in (0.5, CELLS - 0.5):
            axes[2].annotate('', (x + 0.5, 5.5), (x + 0.5, start), arrowprops=arrow)
    star(axes[2], query, QUERY)
    return figure


def draw_dilation() -> plt.Figure:
    """DiNAT: as many neighbors further apart; MaxViT: windows of distant tokens."""
    figure, axes = feature_maps(
        'neighborhood of 3x3', 'with a dilation of 2', 'windows, dilation 4'
    )
    query, corner = (2, 5), (7, 0)
    for ax, step in zip(axes, (1, 2), strict=False):
        near = [(2 + step * i, 5 + step * j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        # At the border, the square moves inside.
        moved = [(7 - step * i, step * j) for i in (0, 1, 2) for j in (0, 1, 2)]
        draw_keys(ax, np.add(query, 0.5), near)
        draw_keys(ax, np.add(corner, 0.5), moved, OTHER, '#e9dcf0')
    for first, color, pale in (((1, 2), QUERY, PALE), ((2, 0), OTHER, '#e9dcf0')):
        keys = [(first[0] + 4 * i, first[1] + 4 * j) for i in (0, 1) for j in (0, 1)]
        draw_keys(axes[2], np.add(first, 0.5), keys, color, pale)
    return figure


def draw_reduced_keys() -> plt.Figure:
    """PVT: a convolution makes a key of every patch; PVTv2: means over a fixed grid."""
    figure, axes = feature_maps(
        'queries', '2x2 patches, convolved', '3x3 grid, averaged'
    )
    query = (2.5, 5.5)
    centers = [(x + 0.5, y + 0.5) for x in range(CELLS) for y in range(CELLS)]
    axes[0].plot(*zip(*centers, strict=True), '.', color=LINE)
    for ax, count in ((axes[1], 4), (axes[2], 3)):
        side = CELLS / count
        ax.grid(count == 4)
        corners = [(side * i, side * j) for i in range(count) for j in range(count)]
        paint(ax, corners, PALE, side=side)
        for corner in corners:
            end = np.add(corner, side / 2)
            ax.plot(*zip(query, end, strict=True), color=QUERY, lw=0.8)
            ax.plot(*end, 's', color=KEY, markersize=2 + 2.5 * side)
    for ax in axes:
        star(ax, query, QUERY)
    return figure


def draw_agents() -> plt.Figure:
    """Agent attention: pooled queries attend to all keys, and queries to them."""
    figure, axes = feature_maps(
        'agents: means of queries', 'agents to all keys', 'queries to agents'
    )
    agents = [(x, y) for x in (2, 6) for y in (2, 6)]
    centers = [(x + 0.5, y + 0.5) for x in range(CELLS) for y in range(CELLS)]
    for ax in axes[:2]:
        ax.plot(*zip(*centers, strict=True), '.', color=LINE if ax is axes[0] else KEY)
    paint(axes[0], [(0, 0), (4, 0), (0, 4), (4, 4)], PALE, side=4)
    for center in centers:
        axes[1].plot(*zip((2, 2), center, strict=True), color=OTHER, lw=0.5)
    for query, color in (((0.5, 5.5), QUERY), ((6.5, 0.5), KEY)):
        for agent in agents:
            axes[2].plot(*zip(query, agent, strict=True), color=color, lw=1)
        star(axes[2], query, color)
    for ax in axes:
        ax.plot(*zip(*agents, strict=True), 'D', color=OTHER, markersize=8)
    return figure


def draw_sparse() -> plt.Figure:
    """Sparse DETR: the scorer learns which tokens the decoder attends to."""
    centers, scores = score_levels(CORNERS, OBJECTS)
    # The decoder attends to borders of objects, and more to a token of coarse levels.
    rng = np.random.default_rng(2)
    side = np.repeat([*CORNERS], [cells**2 for cells in CORNERS])
    attention = scores * rng.uniform(0.3, 1.7, len(scores)) + 0.8 / side**1.5
    columns = (
        (scores, 'scores of the scorer', KEY, 'tokens that the encoder updates'),
        (attention, 'decoder attention map', QUERY, 'most attended: labels of scores'),
    )
    figure, axes = plt.subplots(2, 2, figsize=(7.4, 5.4), layout='compressed')
    for column, (values, title, color, selected) in zip(axes.T, columns, strict=True):
        draw_levels(column[0], title)
        draw_levels(column[1], selected)
        best = centers[values.argsort()[::-1][: int(0.3 * len(values))]]
        column[0].scatter(*centers.T, s=16 * values, color=color, lw=0)
        column[1].scatter(*best.T, s=8, color=color, lw=0)
    return figure


def draw_levels(ax: Axes, title: str) -> None:
    """Draw the outlines of three levels next to each other, with two objects."""
    ax.set(xlim=(-0.2, 25.2), ylim=(16.2, -0.2), aspect='equal', title=title)
    ax.axis('off')
    for cells, corner in CORNERS.items():
        ax.add_patch(Rectangle(corner, cells, cells, fill=False, ec=LINE))
        for center, radius in OBJECTS:
            center = np.multiply(center, cells) + corner
            ax.add_patch(plt.Circle(center, radius * cells, color='#f6d8a8', lw=0))


def score_levels(
    corners: dict[int, tuple[int, int]],
    objects: Iterable[tuple[tuple[float, float], float]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the centers of the tokens of all levels, (N, 2), and foreground scores.

    Scores of an object are highest on the level on which it is four cells wide.
    """
    rng = np.random.default_rng(1)
    all_centers, all_scores = [], []
    for cells, corner in corners.items():
        steps = np.arange(cells) + 0.5
        centers = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
        scores = rng.uniform(0, 0.08, len(centers))
        for center, radius in objects:
            fit = np.exp(-(np.log2(2 * radius * cells / 4) ** 2) / 8)
            distance = np.hypot(*(centers / cells - center).T) / radius
            scores = np.maximum(scores, fit * np.exp(-(distance**2)))
        all_centers.append(centers + corner)
        all_scores.append(scores)
    return np.concatenate(all_centers), np.concatenate(all_scores)


def feature_maps(*titles: str) -> tuple[plt.Figure, Iterable[Axes]]:
    """Make panels with empty feature maps of CELLS x CELLS."""
    figure, axes = plt.subplots(1, len(titles), figsize=(9, 3.3))
    for ax, title in zip(axes, titles, strict=True):
        draw_cells(ax, CELLS, title)
    return figure, axes


def draw_cells(ax: Axes, cells: int, title: str) -> None:
    ax.set(xlim=(0, cells), ylim=(cells, 0), aspect='equal', title=title)
    ax.set_xticks(range(cells + 1), labels=[])
    ax.set_yticks(range(cells + 1), labels=[])
    ax.tick_params(length=0)
    ax.grid(color='#e6e6e6', lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[:].set_color(LINE)


def draw_borders(ax: Axes, side: int) -> None:
    """Draw lines between squares of side x side cells."""
    for position in range(side, CELLS, side):
        ax.axhline(position, color=LINE, lw=1.2)
        ax.axvline(position, color=LINE, lw=1.2)


def draw_keys(
    ax: Axes,
    query: Iterable[float],
    cells: Iterable[tuple[int, int]],
    color: str = QUERY,
    pale: str = PALE,
) -> None:
    """Draw a query and the cells of its keys."""
    paint(ax, cells, pale)
    for x, y in cells:
        ax.plot(x + 0.5, y + 0.5, 'o', color=KEY if color == QUERY else color, ms=4)
    star(ax, query, color)


def paint(
    ax: Axes, corners: Iterable[tuple[float, float]], color: str, side: float = 1
) -> None:
    for corner in corners:
        square = Rectangle(corner, side, side, fc=color, ec=LINE, lw=0.8, zorder=0.5)
        ax.add_patch(square)


def star(ax: Axes, point: Iterable[float], color: str) -> None:
    ax.plot(*point, '*', color=color, markersize=15, mec='white', zorder=4)


if __name__ == '__main__':
    main()
