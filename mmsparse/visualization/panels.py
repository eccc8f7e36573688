"""Figures with panels that show the image; coordinates are in pixels of the image."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.sample import Sample

PANEL_WIDTH, TITLE_HEIGHT = 2.6, 0.3  # inches
BOX_COLOR, QUERY_COLOR = '#ffd21f', '#00e5ff'
HEAT = 'inferno'
SHADE = 0.75  # opacity of dark cells
DIMMED = 0.55  # brightness of the image under a heat map


def make_panels(
    sample: Sample, rows: int, columns: int, dimmed: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of panels that show image and predictions, and its axes by row.

    ``dimmed`` makes the image dark and pale, as the background of heat maps.
    """
    image = sample.image
    height, width = image.shape[:2]
    if dimmed:
        gray = image.mean(-1, keepdims=True)
        image = (DIMMED * (0.6 * gray + 0.4 * image)).astype(np.uint8)
    size = PANEL_WIDTH * columns, (PANEL_WIDTH * height / width + TITLE_HEIGHT) * rows
    figure = Figure(size, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.imshow(image, extent=(0, width, height, 0))
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        draw_boxes(axis, sample.boxes)
        if sample.seg_map is not None:
            _draw_class_borders(axis, sample.seg_map)
    if sample.caption:
        figure.suptitle(sample.caption, fontsize=10)
    return figure, [list(row) for row in axes]


def set_title(axis: Axes, text: str) -> None:
    """Write a small title above a panel."""
    axis.set_title(text, fontsize=9)


def mark_query(axis: Axes, point: Point) -> None:
    """Draw a star at the query (x, y)."""
    axis.plot(*point, '*', color=QUERY_COLOR, markersize=9, markeredgecolor='black')


def draw_boxes(
    axis: Axes, boxes: Tensor, color: str = BOX_COLOR, width: float = 1
) -> None:
    """Draw boxes (x1, y1, x2, y2) in pixels of the image, (M, 4)."""
    for x1, y1, x2, y2 in boxes.tolist():
        style = dict(fill=False, color=color, linewidth=width)
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def draw_dots(axis: Axes, points: Tensor, areas: Tensor, **style: Any) -> None:
    """Draw dots with a white border at points (x, y), (M, 2), of areas (M,) in pt^2."""
    style = dict(edgecolors='white', linewidths=0.4, zorder=3) | style
    axis.scatter(*points.T.numpy(), s=areas.numpy(), **style)


def overlay_cells(
    axis: Axes,
    sample: Sample,
    values: Tensor,
    corners: Tensor,
    colors: str | None = None,
    vmax: float | None = None,
) -> None:
    """Draw the cells of a feature map, (rows, columns), over the image.

    ``corners``, (2, 2), are the outer corners (x, y) of the first and the last cell.
    Values are from 0 for a dark cell to 1 for a transparent one; with ``colors``, the
    name of a colormap, from 0 to ``vmax`` or to the largest one.
    """
    (left, top), (right, bottom) = corners.tolist()
    style = dict(extent=(left, right, bottom, top), interpolation='nearest')
    cells = values.detach().float().cpu().numpy()
    if colors is None:
        cells = np.pad(SHADE * (1 - cells)[..., None], [(0, 0), (0, 0), (3, 0)])
    else:
        style |= dict(cmap=colors, alpha=0.7, vmin=0, vmax=vmax)
    height, width = sample.image.shape[:2]
    axis.imshow(cells, **style)
    axis.set(xlim=(0, width), ylim=(height, 0))  # imshow changed them


def fill_rectangles(
    axis: Axes, sample: Sample, rectangles: Tensor, weights: Tensor
) -> None:
    """Fill rectangles (x1, y1, x2, y2) of the input, (M, 4), by their weights, (M,)."""
    share = (weights / weights.max().clamp(min=1e-12)).cpu().numpy()
    colors = colormaps[HEAT](share)
    colors[:, 3] = 0.35 + 0.5 * share
    draw_rectangles(axis, sample, rectangles, facecolors=colors, linewidths=0)


def draw_rectangles(
    axis: Axes, sample: Sample, rectangles: Tensor, **style: Any
) -> None:
    """Draw rectangles (x1, y1, x2, y2) in pixels of the input, (M, 4)."""
    corners = rectangles[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].cpu()
    corners = sample.transform.to_image(corners).numpy()
    axis.add_collection(PolyCollection(corners, **style))


def _draw_class_borders(axis: Axes, seg_map: np.ndarray) -> None:
    borders = np.zeros((*seg_map.shape, 4), dtype=np.float32)
    color = np.float32((1, 0.82, 0.12, 0.8))
    borders[:-1][seg_map[:-1] != seg_map[1:]] = color
    borders[:, :-1][seg_map[:, :-1] != seg_map[:, 1:]] = color
    height, width = seg_map.shape
    axis.imshow(borders, extent=(0, width, height, 0), interpolation='nearest')
