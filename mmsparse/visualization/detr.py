"""Draw what the queries of a DETR's decoder and the points of its encoder attend to."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from mmsparse.visualization import panels
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.recorder import LayerRecording
from mmsparse.visualization.sample import Sample

MAX_OBJECTS, MAX_POINTS = 5, 4
PAINT = 0.8  # largest opacity of an object's color
COLORS = [to_hex(color) for color in colormaps['Set1'].colors]
ENCODER = 'encoder'  # stage of its layers


def draw_queries(sample: Sample) -> Figure:
    """Draw what the decoder queries of the best detections attend to (DETR).

    Attention is that of the last decoder layer, averaged over heads. The first panel
    has all objects, each in a color; the others have one each, at most five.

    Source: End-to-End Object Detection with Transformers, arXiv 2005.12872, figure 6.
    """
    queries = best_queries(sample)
    rows, columns = (1, 2) if len(queries) == 1 else (2, -(-(len(queries) + 1) // 2))
    bare = sample.without_predictions()
    figure, axes = panels.make_panels(bare, rows, columns, dimmed=True)
    first, *others = [axis for row in axes for axis in row]
    paint_objects(first, sample, queries)
    panels.set_title(first, 'all objects')
    scores, labels, boxes = sample.query_detections()
    values, corners = query_attention(sample)
    for axis, query in zip(others, queries, strict=False):
        shares = values[query] / values[query].max()
        colors = panels.heat_colors(shares)
        panels.overlay_cells(axis, sample, corners, colors)
        panels.draw_boxes(axis, boxes[query][None], panels.QUERY_COLOR, width=1.6)
        panels.set_title(
            axis, sample.describe(int(labels[query]), float(scores[query]))
        )
    panels.fill_blank(others[len(queries) :], sample)
    panels.add_color_bar(figure, axes, panels.RELATIVE)
    panels.set_caption(
        figure,
        'What the decoder queries of the best detections attend to, in the last '
        'decoder layer, averaged over heads. First panel: the attention of every '
        'object in the color of its box.',
    )
    return figure


def draw_encoder_points(sample: Sample, point: Point) -> Figure:
    """Draw the attention of a DETR's encoder at the centers of the best detections.

    A column per detection, at most four; at ``point`` if there is none. Top: what the
    point attends to. Bottom: how much every position attends to the point.

    Source: End-to-End Object Detection with Transformers, arXiv 2005.12872, figure 3.
    """
    layer = encoder_layers(sample)[-1]
    boxes = sample.boxes[:MAX_POINTS]
    points = [tuple(x) for x in ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()]
    points = [x for x in points if _is_inside(sample, x)] or [point]
    figure, axes = panels.make_pairs(sample, len(points), dimmed=True)
    height, width = size = layer.x.shape[-2:]
    with torch.no_grad():
        queries = torch.arange(height * width, device=layer.x.device)
        (attention,) = layer.layer.attention_maps(layer.x, queries)
    weights = attention.weights[0].mean(0)  # (queries, keys)
    corners = map_corners(sample, size, layer.stride)
    for place, top, bottom in zip(points, *axes, strict=True):
        cell = sample.query_at(place, layer)
        for axis, values in ((top, weights[cell]), (bottom, weights[:, cell])):
            shares = values.view(size) / values.max().clamp(min=1e-12)
            colors = panels.heat_colors(shares)
            panels.overlay_cells(axis, sample, corners, colors)
            panels.mark_query(axis, place)
        panels.set_title(top, 'attended to by the point')
        panels.set_title(bottom, 'attends to the point')
    panels.add_color_bar(figure, axes, panels.RELATIVE)
    panels.set_caption(
        figure,
        'Attention of the last encoder layer at points (stars), the centers of the '
        'best detections, averaged over heads. Top: what the point attends to. '
        'Bottom: how much every position attends to the point.',
    )
    return figure


def encoder_layers(sample: Sample) -> list[LayerRecording]:
    """Return the encoder's layers with full attention."""
    return [x for x in sample.recording.layers if x.stage == ENCODER]


def best_queries(sample: Sample) -> list[int]:
    """Return the queries of the best detections, at least one and at most five."""
    scores, _, _ = sample.query_detections()
    count = min(max(len(sample.boxes), 1), MAX_OBJECTS, len(scores))
    return scores.topk(count).indices.tolist()


def query_attention(sample: Sample) -> tuple[Tensor, Tensor]:
    """Return the attention of all queries in the last decoder layer, (Q, H, W).

    The second value has the outer corners (x, y) of the first and the last cell in
    pixels of the image, (2, 2).
    """
    weights, stride = sample.recording.cross_attention[-1]
    values = weights[0].mean(0).cpu()
    return values, map_corners(sample, values.shape[-2:], stride)


def paint_objects(axis: Axes, sample: Sample, queries: Sequence[int]) -> None:
    """Draw the attention of queries with their boxes, a color for each."""
    scores, labels, boxes = sample.query_detections()
    values, corners = query_attention(sample)
    for query, color in zip(queries, COLORS, strict=False):
        shares = values[query] / values[query].max()
        colors = np.tile(to_rgba(color), (*shares.shape, 1))
        colors[..., 3] = PAINT * shares  # opacity
        panels.overlay_cells(axis, sample, corners, colors, smooth=True)
        panels.draw_boxes(axis, boxes[query][None], color, width=1.6)
        name = sample.describe(int(labels[query]), float(scores[query]))
        corner = boxes[query, :2].clamp(min=0).tolist()
        panels.write(axis, corner, name, color, va='bottom')


def map_corners(sample: Sample, size: tuple[int, int], stride: int) -> Tensor:
    """Return the outer corners (x, y) of a feature map's first and last cell, (2, 2).

    They are in pixels of the image; ``size`` is (H, W), and ``stride`` in pixels of the
    input.
    """
    ends = stride * torch.tensor([[0, 0], [size[1], size[0]]], dtype=torch.float)
    return sample.transform.to_image(ends)


def _is_inside(sample: Sample, point: Point) -> bool:
    try:
        sample.transform.check_point(point)
    except ValueError:
        return False
    return True
