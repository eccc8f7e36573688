"""Figures of panels, each with the picture in it; all in pixels of the picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmsparse.visualization.sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.6  # inches
TITLE = 0.3
BOX_COLOR = '#ffd21f'
QUERY_COLOR = '#00e5ff'
HEAT = 'inferno'
DARKNESS = 0.75  # of what does not count
DIMMED = 0.55  # the picture behind heat


def panels(
    scene: Sample, rows: int, columns: int, dimmed: bool = False
) -> tuple['Figure', list[list['Axes']]]:
    """Make a figure of panels, the picture and what the model says in each.

    Args:
        scene: The picture.
        rows: Number of panels down.
        columns: Number of panels across.
        dimmed: Take color and light from the picture, for what is drawn on it.

    Returns:
        The figure and its axes by row.
    """
    from matplotlib.figure import Figure  # slow to import

    height, width = scene.picture.shape[:2]
    size = (PANEL * columns, (PANEL * height / width + TITLE) * rows)
    figure = Figure(size, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False)
    picture = _dim(scene.picture) if dimmed else scene.picture
    for axis in axes.flat:
        axis.imshow(picture, extent=(0, width, height, 0))
        axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        frame_boxes(axis, scene.boxes)
        if scene.classes is not None:
            _outline(axis, scene.classes)
    if scene.caption:
        figure.suptitle(scene.caption, fontsize=10)
    return figure, [list(row) for row in axes]


def title(axis: 'Axes', text: str) -> None:
    """Write above a panel."""
    axis.set_title(text, fontsize=9)


def frame_boxes(
    axis: 'Axes', boxes: Tensor, color: str = BOX_COLOR, width: float = 1
) -> None:
    """Draw boxes (x1, y1, x2, y2), (M, 4)."""
    from matplotlib.patches import Rectangle

    for x1, y1, x2, y2 in boxes.tolist():
        axis.add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, color=color, linewidth=width
            )
        )


def lay_cells(
    axis: 'Axes',
    scene: Sample,
    values: Tensor,
    end: Sequence[float],
    colors: str | None = None,
    top: float | None = None,
) -> None:
    """Lay the cells of a map over the picture.

    Args:
        axis: The panel.
        scene: The picture.
        values: From 0 for darkness to 1 for light, (rows, columns); of any range with
            ``colors``.
        end: (x, y) in pixels of the input where the map ends; it begins at 0.
        colors: Name of a color map to be drawn instead of darkness.
        top: Value of the last color; that of the largest value if None.
    """
    corners = scene.frame.to_picture(torch.tensor([[0.0, 0.0], list(end)])).tolist()
    (left, upper), (right, lower) = corners
    options = dict(extent=(left, right, lower, upper), interpolation='nearest')
    shown = values.detach().float().cpu().numpy()
    if colors is None:
        shade = np.zeros((*shown.shape, 4), dtype=np.float32)
        shade[..., 3] = DARKNESS * (1 - shown)
        axis.imshow(shade, **options)
    else:
        axis.imshow(shown, cmap=colors, alpha=0.7, vmin=0, vmax=top, **options)
    height, width = scene.picture.shape[:2]  # imshow changes the limits
    axis.set(xlim=(0, width), ylim=(height, 0))


def fill_rectangles(
    axis: 'Axes', scene: Sample, rectangles: Tensor, weights: Tensor
) -> None:
    """Fill rectangles with heat, the largest weight hottest.

    Args:
        axis: The panel.
        scene: The picture.
        rectangles: (x1, y1, x2, y2) in pixels of the input, (M, 4).
        weights: (M,).
    """
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    share = (weights / weights.max().clamp(min=1e-12)).cpu()
    colors = colormaps[HEAT](share.numpy())
    colors[:, 3] = 0.35 + 0.5 * share.numpy()
    corners = rectangles[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    corners = scene.frame.to_picture(corners.cpu()).numpy()
    axis.add_collection(PolyCollection(corners, facecolors=colors, linewidths=0))


def outline_rectangles(
    axis: 'Axes',
    scene: Sample,
    rectangles: Tensor,
    color: str,
    width: float = 0.8,
    alpha: float = 1,
) -> None:
    """Outline rectangles (x1, y1, x2, y2) in pixels of the input, (M, 4)."""
    from matplotlib.collections import PolyCollection

    corners = rectangles[:, [[0, 1], [2, 1], [2, 3], [0, 3]]]
    corners = scene.frame.to_picture(corners.cpu()).numpy()
    axis.add_collection(
        PolyCollection(
            corners,
            facecolors='none',
            edgecolors=color,
            linewidths=width,
            alpha=alpha,
        )
    )


def mark_point(axis: 'Axes', point: tuple[float, float]) -> None:
    """Mark a chosen point (x, y)."""
    axis.plot(*point, '*', color=QUERY_COLOR, markersize=9, markeredgecolor='black')


def _dim(picture: np.ndarray) -> np.ndarray:
    gray = picture.mean(-1, keepdims=True)
    return (DIMMED * (0.6 * gray + 0.4 * picture)).astype(np.uint8)


def _outline(axis: 'Axes', classes: np.ndarray) -> None:
    """Draw the borders between the classes of a segmentation."""
    edges = np.zeros(classes.shape, dtype=bool)
    edges[:-1] |= classes[:-1] != classes[1:]
    edges[:, :-1] |= classes[:, :-1] != classes[:, 1:]
    drawn = np.zeros((*edges.shape, 4), dtype=np.float32)
    drawn[edges] = (1, 0.82, 0.12, 0.8)
    height, width = classes.shape
    axis.imshow(drawn, extent=(0, width, height, 0), interpolation='nearest')
