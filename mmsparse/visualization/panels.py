"""Figures with panels that show the image; coordinates are in pixels of the image."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mmsparse.visualization.image_transform import Pixels, Point
from mmsparse.visualization.sample import Sample

SHEET_WIDTH, SHEET_HEIGHT, WIDEST_PANEL = 10.4, 9, 4.2  # inches
TITLE_HEIGHT, LINE_HEIGHT, BAR_WIDTH = 0.28, 0.16, 0.75  # inches
LETTERS, TITLE_LETTERS = 18, 13  # per inch of a caption, and of a title
SHORTEST = 12  # letters of a line of a title, in panels narrower than that too
ENLARGED = 512  # pixels of the longer side, at least, before anything is drawn on it
BOX_COLOR, QUERY_COLOR, KEYS_COLOR = '#ffd21f', '#00e5ff', 'white'
HEAT = 'inferno'
RELATIVE = 'attention, relative to the largest of a panel'  # what it shows
SHADE = 0.75  # opacity of dark cells
DIMMED = 0.55  # brightness of the image under a heat map
FAINTEST, STRONGEST = 0.25, 0.85  # opacity of a heat map
MASK_OPACITY = 0.45
MIN_REGION = 0.01  # part of the image that a class must cover to be named


def make_panels(
    sample: Sample, rows: int, columns: int, dimmed: bool = False
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure of panels that show image and predictions, and its axes by row.

    The first panel names the predicted classes. ``dimmed`` makes the image dark and
    pale, as the background of heat maps.
    """
    height, width = sample.image.shape[:2]
    panel = min(
        SHEET_WIDTH / columns, WIDEST_PANEL, SHEET_HEIGHT / rows * width / height
    )
    size = panel * columns + BAR_WIDTH, (panel * height / width + TITLE_HEIGHT) * rows
    figure = Figure(size, layout='constrained')
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_anchor('N')  # the layout would cut titles off above centered images
        show_sample(axis, sample, dimmed)
    name_classes(axes[0, 0], sample)
    if sample.caption:
        figure.suptitle(f'prediction: {sample.caption}', fontsize=10)
    return figure, [list(row) for row in axes]


def make_pairs(
    sample: Sample, count: int, dimmed: bool = False
) -> tuple[Figure, tuple[Sequence[Axes], Sequence[Axes]]]:
    """Return a figure of pairs of panels, upper and lower; a single pair in one row."""
    if count > 1:
        figure, (tops, bottoms) = make_panels(sample, 2, count, dimmed)
        return figure, (tops, bottoms)
    figure, ((left, right),) = make_panels(sample, 1, 2, dimmed)
    return figure, ([left], [right])


def show_sample(axis: Axes, sample: Sample, dimmed: bool = False) -> None:
    """Show image, boxes, masks and borders between classes in a panel."""
    image = enlarge(sample.image)
    height, width = sample.image.shape[:2]
    if dimmed:
        gray = image.mean(-1, keepdims=True)
        image = (DIMMED * (0.6 * gray + 0.4 * image)).astype(np.uint8)
    axis.imshow(image, extent=(0, width, height, 0))
    axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    draw_predictions(axis, sample)


def draw_predictions(axis: Axes, sample: Sample) -> None:
    """Draw boxes, masks and borders between classes in a panel."""
    if sample.masks is not None:
        _draw_masks(axis, sample.masks)
    draw_boxes(axis, sample.boxes)
    if sample.seg_map is not None:
        _draw_class_borders(axis, sample.seg_map)


def enlarge(image: Pixels) -> Pixels:
    """Enlarge a small image smoothly, so that its pixels are not seen as squares."""
    height, width = image.shape[:2]
    zoom = -(-ENLARGED // max(height, width))
    if zoom == 1:
        return image
    size = (zoom * width, zoom * height)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def fill_blank(axes: Sequence[Axes], sample: Sample) -> None:
    """Show the plain image in the first of the panels left over; hide the others."""
    for axis in axes[1:]:
        axis.set_visible(False)
    for axis in axes[:1]:
        show_sample(axis, sample)
        set_title(axis, 'image and prediction')


def set_title(axis: Axes, text: str) -> None:
    """Write a small title above a panel; the figure becomes higher for more lines."""
    figure, grid = axis.figure, axis.get_gridspec()
    width, height = figure.get_size_inches()
    title = _wrap(text, (width - BAR_WIDTH) / grid.ncols)
    known = max(other.get_title().count('\n') for other in figure.axes)
    added = grid.nrows * LINE_HEIGHT * max(0, title.count('\n') - known)
    figure.set_size_inches(width, height + added)
    axis.set_title(title, fontsize=9, pad=3)


def set_row_title(axis: Axes, text: str) -> None:
    """Write a title to the left of the first panel of a row, in lines of its height."""
    height = axis.figure.get_size_inches()[1] / axis.get_gridspec().nrows
    axis.set_ylabel(_wrap(text, height - TITLE_HEIGHT), fontsize=9)


def _wrap(title: str, inches: float) -> str:
    """Break the lines of a title that are longer than a panel."""
    width = max(SHORTEST, int(inches * TITLE_LETTERS))
    parts = title.split('\n')
    lines = (textwrap.wrap(x, width, break_long_words=False) for x in parts)
    return '\n'.join(line for part in lines for line in part)


def set_caption(figure: Figure, text: str) -> None:
    """Write what a figure shows below it; the figure becomes higher by that."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(text, int(width * LETTERS))
    figure.set_size_inches(width, height + LINE_HEIGHT * (len(lines) + 1))
    style = dict(fontsize=8, ha='left', color='#404040')
    figure.supxlabel('\n'.join(lines), x=0.01, **style)


def add_color_bar(
    figure: Figure, axes: Iterable[Sequence[Axes]], label: str, overlaid: bool = True
) -> None:
    """Add the color scale of values from 0 to 1 at the right of the panels.

    ``overlaid`` heat maps are transparent, and have colors as over a dimmed image.
    """
    colors = colormaps[HEAT](np.linspace(0, 1, 256))
    if overlaid:
        opacity = np.linspace(FAINTEST, STRONGEST, 256)[:, None]
        colors = opacity * colors[:, :3] + (1 - opacity) * 0.5 * DIMMED
    scale = ScalarMappable(Normalize(0, 1), ListedColormap(colors))
    all_axes = [axis for row in axes for axis in row]
    bar = figure.colorbar(scale, ax=all_axes, aspect=30, pad=0.01, shrink=0.9)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def add_legend(figure: Figure, entries: dict[str, str]) -> None:
    """Add a legend of colors at the right; ``entries`` are names and colors."""
    style = dict(marker='o', linestyle='', markersize=6, markeredgecolor='white')
    handles = [
        Line2D([], [], color=color, label=name, **style)
        for name, color in entries.items()
    ]
    figure.legend(handles=handles, loc='outside right upper', fontsize=8, frameon=False)


def mark_query(axis: Axes, point: Point) -> None:
    """Draw a star at the query (x, y)."""
    axis.plot(*point, '*', color=QUERY_COLOR, markersize=10, markeredgecolor='black')


def name_classes(axis: Axes, sample: Sample) -> None:
    """Write the classes of boxes, or of the regions of a segmentation, in a panel."""
    for (x, y, *_), label in zip(sample.boxes.tolist(), sample.labels, strict=False):
        write(axis, (x, y), label, BOX_COLOR, va='bottom')
    if sample.seg_map is None:
        return
    for label in np.unique(sample.seg_map):
        region = np.argwhere(sample.seg_map == label)
        if len(region) >= MIN_REGION * sample.seg_map.size:
            # The pixel of the region that is nearest to its center.
            nearest = np.square(region - region.mean(0)).sum(1).argmin()
            y, x = region[nearest] + 0.5
            write(axis, (x, y), sample.class_name(int(label)), 'white', ha='center')


def write(
    axis: Axes, point: Point, text: str, color: str = 'white', **style: Any
) -> None:
    """Write a small text with a dark outline at a point (x, y) of the image."""
    outline = [withStroke(linewidth=1.5, foreground='black')]
    style = dict(fontsize=7, va='center', clip_on=True) | style
    axis.text(*point, text, color=color, path_effects=outline, zorder=4, **style)


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
    corners: Tensor,
    colors: NDArray,
    smooth: bool = False,
) -> None:
    """Draw the cells of a feature map over the image.

    ``corners``, (2, 2), are the outer corners (x, y) of the first and the last cell,
    ``colors`` those of the cells, RGBA, (rows, columns, 4). ``smooth`` interpolates
    between cells.
    """
    (left, top), (right, bottom) = corners.tolist()
    height, width = sample.image.shape[:2]
    axis.imshow(
        colors,
        extent=(left, right, bottom, top),
        interpolation='bilinear' if smooth else 'nearest',
    )
    axis.set(xlim=(0, width), ylim=(height, 0))  # imshow changed them


def shade_colors(values: Tensor) -> NDArray[np.floating]:
    """Return RGBA from dark to transparent, (rows, columns, 4), of values in 0 to 1."""
    cells = values.detach().float().cpu().numpy()
    return np.pad(SHADE * (1 - cells)[..., None], [(0, 0), (0, 0), (3, 0)])


def heat_colors(shares: Tensor) -> NDArray[np.floating]:
    """Return transparent colors, RGBA, of values from 0 to 1, (..., 4)."""
    shares = shares.detach().float().cpu().numpy()
    colors = colormaps[HEAT](shares)
    colors[..., 3] = FAINTEST + (STRONGEST - FAINTEST) * shares
    return colors


def fill_rectangles(
    axis: Axes, sample: Sample, rectangles: Tensor, weights: Tensor
) -> None:
    """Fill rectangles (x1, y1, x2, y2) of the input, (M, 4), by their weights, (M,)."""
    colors = heat_colors(weights / weights.max().clamp(min=1e-12))
    draw_rectangles(axis, sample, rectangles, facecolors=colors, linewidths=0)


def draw_rectangles(
    axis: Axes, sample: Sample, rectangles: Tensor, **style: Any
) -> None:
    """Draw rectangles (x1, y1, x2, y2) in pixels of the input, (M, 4)."""
    corners = rectangles[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].cpu()
    corners = sample.transform.to_image(corners).numpy()
    axis.add_collection(PolyCollection(corners, **style))


def outline_rectangles(axis: Axes, sample: Sample, rectangles: Tensor) -> None:
    """Draw the outline of the union of rectangles of a grid, (M, 4), of the input."""
    sides = rectangles.cpu()[
        :, [[0, 1, 2, 1], [0, 3, 2, 3], [0, 1, 0, 3], [2, 1, 2, 3]]
    ]
    # A side inside of the union belongs to two rectangles.
    sides, counts = sides.flatten(0, 1).unique(dim=0, return_counts=True)
    ends = sample.transform.to_image(sides[counts == 1].unflatten(1, (2, 2)))
    style = dict(colors=KEYS_COLOR, linewidths=1.2, capstyle='projecting')
    axis.add_collection(LineCollection(ends.numpy(), **style))


def _draw_masks(axis: Axes, masks: Tensor) -> None:
    """Color masks, (M, H, W), in one transparent image."""
    height, width = masks.shape[1:]
    colors = np.zeros((height, width, 4))
    for i, mask in enumerate(masks.numpy()):
        colors[mask] = colormaps['tab10'](i % 10, alpha=MASK_OPACITY)
    axis.imshow(colors, extent=(0, width, height, 0), interpolation='nearest')


def _draw_class_borders(axis: Axes, seg_map: np.ndarray) -> None:
    height, width = seg_map.shape
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    for label in np.unique(seg_map)[1:]:
        style = dict(levels=[0.5], colors=BOX_COLOR, linewidths=0.8)
        axis.contour(columns, rows, (seg_map == label).astype(np.uint8), **style)
