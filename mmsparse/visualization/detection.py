"""Draw foreground scores, kept tokens and sampling locations of detectors."""

import torch
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from mmsparse.visualization import panels
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.sample import Sample

LARGEST_DOT = 60  # pt^2


def draw_foreground_scores(sample: Sample) -> Figure:
    """Draw the probability by which a token selector ranks tokens, by level."""
    levels = split_levels(sample, sample.recording.tokens.scores[0].sigmoid())
    figure, axes = panels.make_panels(sample, 1, len(levels), dimmed=True)
    for axis, (values, corners) in zip(axes[0], levels, strict=True):
        colors = panels.heat_colors(values)
        panels.overlay_cells(axis, sample, corners, colors)
        rows, columns = values.shape
        panels.set_title(axis, f'{rows}x{columns} cells, up to {values.max():.2f}')
    panels.add_color_bar(figure, axes, 'foreground probability')
    panels.set_caption(
        figure,
        'Probability that a token of a feature level is in the foreground, by which '
        'tokens are selected for the encoder. Boxes: detections.',
    )
    return figure


def draw_kept_tokens(sample: Sample) -> Figure:
    """Draw which tokens the encoder layers of a Focus-DETR or Sparse DETR keep.

    A row per level, a column per layer; levels are next to each other if all layers
    keep the same. Tokens that are not kept are dark; object tokens have a dot.
    """
    tokens = sample.recording.tokens
    kept, objects = tokens.kept.kept[0], tokens.objects[0].cpu()
    sizes = tokens.kept.level_sizes
    lengths = [rows * columns for rows, columns in sizes]
    centers = sample.to_pixels(tokens.kept.centers[0].cpu())
    if len(kept) > 1:
        figure, axes = panels.make_panels(sample, len(sizes), len(kept))
    else:
        figure, (levels,) = panels.make_panels(sample, 1, len(sizes))
        axes = [[axis] for axis in levels]
    for i, (mask, marks, *column) in enumerate(zip(kept, objects, *axes, strict=True)):
        layer = f'layer {i + 1}' if len(kept) > 1 else 'all layers'
        panels.set_title(column[0], f'{layer}: {mask.float().mean():.0%} kept')
        for axis, (values, corners), points, chosen in zip(
            column,
            split_levels(sample, mask),
            centers.split(lengths),
            marks.split(lengths),
            strict=True,
        ):
            panels.overlay_cells(axis, sample, corners, panels.shade_colors(values))
            points = points[chosen].T.numpy()
            axis.scatter(*points, s=5, c=panels.QUERY_COLOR, zorder=3)
    for (axis, *_), (rows, columns) in zip(axes, sizes, strict=True):
        panels.set_row_title(axis, f'{rows}x{columns} cells')
    caption = 'Tokens that all encoder layers keep, by feature level.'
    if len(kept) > 1:
        caption = 'Tokens that the encoder layers (columns) keep on the levels (rows).'
    caption += ' Dark tokens are not refined.'
    if objects.any():
        caption += ' Blue dots: object tokens, which attend to each other.'
    panels.set_caption(figure, caption)
    return figure


def split_levels(sample: Sample, values: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split one value per token, (N,), into feature levels, (rows, columns) each.

    The second entry per level has the outer corners (x, y) of its first and last cell
    in pixels of the image, (2, 2).
    """
    kept = sample.recording.tokens.kept
    lengths = [rows * columns for rows, columns in kept.level_sizes]
    levels = []
    for size, centers, of_level in zip(
        kept.level_sizes,
        kept.centers[0].cpu().split(lengths),
        values.cpu().split(lengths),
        strict=True,
    ):
        # The first center is half a cell from the border.
        end = 2 * centers[0] * torch.tensor(size[::-1])
        corners = sample.to_pixels(torch.stack([torch.zeros(2), end]))
        levels.append((of_level.view(size), corners))
    return levels


def draw_sampling_locations(sample: Sample, point: Point | None = None) -> Figure:
    """Draw the sampling locations of one detection, a panel per decoder layer.

    All heads are drawn. Colors are feature levels; the area of a dot is proportional to
    its attention weight. ``point`` selects the detection, see :func:`detection_at`; one
    outside of the image raises ValueError.
    """
    if point is not None:
        sample.transform.check_point(point)
    query = detection_at(sample, point)
    scores, labels, boxes = sample.query_detections()
    layers = sample.recording.sampling
    figure, axes = panels.make_panels(sample, 1, len(layers))
    largest = max(float(layer.weights[0, query].max()) for layer in layers)
    levels = layers[0].points.shape[3]
    colors = {f'level {i + 1}': to_hex(colormaps['tab10'](i)) for i in range(levels)}
    for i, (axis, layer) in enumerate(zip(axes[0], layers, strict=True)):
        panels.draw_boxes(axis, boxes[query][None], panels.QUERY_COLOR, width=1.6)
        points = sample.to_pixels(layer.points[0, query].cpu())  # (heads, levels, P, 2)
        for level, color in enumerate(colors.values()):
            weights = layer.weights[0, query, :, level].flatten().cpu()
            areas = 1 + LARGEST_DOT * weights / largest
            of_level = points[:, level].flatten(0, 1)
            panels.draw_dots(axis, of_level, areas, alpha=0.8, color=color)
        panels.set_title(axis, f'decoder layer {i + 1}')
    caption = sample.describe(int(labels[query]), float(scores[query]))
    figure.suptitle(caption, fontsize=10)
    panels.add_legend(figure, colors)
    panels.set_caption(
        figure,
        'Where the decoder samples the feature levels for one detection (blue box); '
        'all heads. A larger dot has a larger attention weight. Yellow boxes: '
        'detections.',
    )
    return figure


def detection_at(sample: Sample, point: Point | None = None) -> int:
    """Return the index of the decoder query with the best score.

    If boxes contain ``point``, (x, y) in pixels of the image, the best of these.
    """
    scores, _, boxes = sample.query_detections()
    if point is not None:
        corner = boxes.new_tensor(point)
        around = ((boxes[:, :2] <= corner) & (corner < boxes[:, 2:])).all(-1)
        scores = scores.masked_fill(~around & around.any(), -1)
    return int(scores.argmax())
