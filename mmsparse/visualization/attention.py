"""Draw attention maps, sampled keys and routed regions."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.ops.routing import Routing
from mmsparse.visualization import panels
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.recorder import LayerRecording
from mmsparse.visualization.sample import Sample
from mmsparse.visualization.statistics import received_attention, reference_points

MAX_GROUPS = 4
LARGEST_DOT = 90  # pt^2
FAINT = '#ffffff80'  # white, half transparent


def draw_attention(
    sample: Sample, point: Point, layers: Sequence[LayerRecording] | None = None
) -> Figure:
    """Draw the attention map of one query, a column per layer.

    Rows are groups of heads that share their keys, at most four. Weights are averaged
    over the heads of a group; colors are relative to the largest weight of a panel.

    Args:
        sample: The sample.
        point: (x, y) of the query in pixels of the image.
        layers: Layers to draw; the last one of every stage if None.

    Returns:
        The figure.

    Raises:
        ValueError: The point is outside of the image or was cropped.
    """
    layers = _last_of_stages(sample.recording.layers) if layers is None else layers
    columns = [_attention_maps(sample, layer, point) for layer in layers]
    rows = min(max(map(len, columns)), MAX_GROUPS)
    figure, axes = panels.make_panels(sample, rows, len(columns), dimmed=True)
    for layer, groups, *column in zip(layers, columns, *axes, strict=True):
        for axis, group in _pair(column, groups):
            _draw_attention_map(axis, sample, layer, group)
            panels.set_title(axis, f'{layer.title}, {group.name}'.removesuffix(', '))
            panels.mark_query(axis, point)
    return figure


def draw_sampled_keys(sample: Sample) -> Figure:
    """Draw where deformable attention (DAT) samples its keys, and what they receive.

    A row per stage, for its last deformable layer, and a column per group of heads, at
    most four. Lines start where a key would be without offset; the area of a dot is
    proportional to the attention that the key receives from all queries.
    """
    layers = _last_of_stages(x for x in sample.recording.layers if x.samples_keys)
    received = [received_attention(recorded.layer, recorded.x) for recorded in layers]
    columns = min(max(map(len, received)), MAX_GROUPS)
    figure, axes = panels.make_panels(sample, len(layers), columns)
    for layer, groups, row in zip(layers, received, axes, strict=True):
        references = reference_points(layer.layer, layer.x)[0]
        for axis, (group, reference) in _pair(
            row, [*zip(groups, references, strict=True)]
        ):
            starts = _to_image(sample, layer, reference)
            ends = _to_image(sample, layer, group.keys[0])
            offsets = torch.stack([starts, ends], dim=1).numpy()
            axis.add_collection(LineCollection(offsets, colors='white', linewidths=0.6))
            axis.scatter(*starts.T.numpy(), s=2, c='white', zorder=2)
            _draw_keys(axis, ends, group.share[0])
            panels.set_title(axis, f'{layer.title}, {group.name} of {len(groups)}')
    return figure


def draw_routed_regions(sample: Sample, point: Point) -> Figure:
    """Draw the regions that a query's region is routed to (BiFormer).

    A column per stage, for its last routed layer. Top: regions, colored by the softmax
    of their affinity to the query's region, which has a blue outline. Bottom: attention
    to the tokens of these regions, averaged over heads. ``point`` is the query, see
    :func:`draw_attention`.
    """
    layers = _last_of_stages(x for x in sample.recording.layers if x.routes_regions)
    figure, (tops, bottoms) = panels.make_panels(sample, 2, len(layers), dimmed=True)
    for layer, top, bottom in zip(layers, tops, bottoms, strict=True):
        (attention,) = _attention_maps(sample, layer, point)
        with torch.no_grad():
            routing = layer.layer.regions(layer.x)
        (_, columns), (h, w) = routing.grid, routing.region
        y, x = divmod(sample.query_at(point, layer), layer.x.shape[-1])
        own = y // h * columns + x // w  # the region of the query
        regions = region_rectangles(layer, routing)
        routes, scores = routing.routes[0, own], routing.scores[0, own]
        panels.fill_rectangles(top, sample, regions[routes], scores)
        _draw_attention_map(bottom, sample, layer, attention)
        for axis in (top, bottom):
            for outlined, color, width in (
                (regions, FAINT, 0.4),
                (regions[routes], 'white', 0.8),
                (regions[own][None], panels.QUERY_COLOR, 1.6),
            ):
                style = dict(facecolors='none', edgecolors=color, linewidths=width)
                panels.draw_rectangles(axis, sample, outlined, **style)
            panels.mark_query(axis, point)
        panels.set_title(top, f'{layer.title}, {len(routes)} of {len(regions)} regions')
        panels.set_title(bottom, 'attention to their tokens')
    return figure


def region_rectangles(layer: LayerRecording, routing: Routing) -> Tensor:
    """Return the regions as (x1, y1, x2, y2) in pixels of the input, (R, 4)."""
    (rows, columns), (h, w) = routing.grid, routing.region
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    corners = torch.stack([x * w, y * h, (x + 1) * w, (y + 1) * h], dim=-1)
    return (corners.flatten(0, 1) * layer.stride).float()


def key_rectangles(
    layer: LayerRecording, keys: Tensor, extent: tuple[float, float]
) -> Tensor:
    """Return keys of centers (y, x), (M, 2), as rectangles of the input, (M, 4)."""
    half = keys.new_tensor(extent) / 2
    corners = torch.cat([(keys - half).flip(-1), (keys + half).flip(-1)], dim=-1)
    return corners * layer.stride


def _last_of_stages(layers: Iterable[LayerRecording]) -> list[LayerRecording]:
    return list({layer.stage: layer for layer in layers}.values())


def _pair(axes: Sequence[Axes], groups: Sequence[Any]) -> Iterable[tuple[Axes, Any]]:
    """Pair panels with groups of heads, and hide those that are left over."""
    for axis in axes[len(groups) :]:
        axis.set_visible(False)
    return zip(axes, groups, strict=False)


@torch.no_grad()
def _attention_maps(
    sample: Sample, layer: LayerRecording, point: Point
) -> tuple[AttentionMap, ...]:
    query = torch.tensor([sample.query_at(point, layer)], device=layer.x.device)
    return layer.layer.attention_maps(layer.x, query)


def _draw_attention_map(
    axis: Axes, sample: Sample, layer: LayerRecording, attention: AttentionMap
) -> None:
    weights = attention.weights[0].mean(0)[0]  # (M,)
    keys = attention.locations()[0, 0]  # (M, 2)
    if attention.extent == POINT:
        _draw_keys(axis, _to_image(sample, layer, keys), weights)
    else:
        rectangles = key_rectangles(layer, keys, attention.extent)
        panels.fill_rectangles(axis, sample, rectangles, weights)


def _to_image(sample: Sample, layer: LayerRecording, cells: Tensor) -> Tensor:
    """Transform (y, x) in cells of a feature map to (x, y) in pixels of the image."""
    return sample.transform.to_image(cells.flip(-1).cpu() * layer.stride)


def _draw_keys(axis: Axes, keys: Tensor, weights: Tensor) -> None:
    share = (weights / weights.max()).cpu()
    style = dict(c=share.numpy(), cmap=panels.HEAT, vmin=0, vmax=1, alpha=0.85)
    panels.draw_dots(axis, keys, 2 + LARGEST_DOT * share, **style)
