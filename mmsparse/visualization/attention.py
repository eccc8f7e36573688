"""Draw attention maps, sampled keys and routed regions."""

from collections.abc import Iterable, Sequence

import torch
from matplotlib.axes import Axes
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
MAX_LAYERS = 4  # of a single stage
MAX_ARROWS = 4  # per row and per column
LARGEST_DOT, MANY_DOTS = 90, 100  # pt^2; in panels with more dots they are smaller
FAINT = '#ffffff80'  # white, half transparent


def draw_attention(
    sample: Sample, point: Point, layers: Sequence[LayerRecording] | None = None
) -> Figure:
    """Draw the attention map of one query, a column per layer.

    Rows are groups of heads that share their keys, at most four; keys sampled between
    cells are in one panel. Weights are averaged over the heads of a group; colors are
    relative to the largest weight of a panel.

    Args:
        sample: The sample.
        point: (x, y) of the query in pixels of the image.
        layers: Layers to draw; if None the last one of every stage, or four of a model
            without stages.

    Returns:
        The figure.

    Raises:
        ValueError: The point is outside of the image or was cropped.
    """
    layers = choose_layers(sample.recording.layers) if layers is None else layers
    columns = [_panel_maps(sample, layer, point) for layer in layers]
    rows = min(max(map(len, columns)), MAX_GROUPS)
    figure, axes = panels.make_panels(sample, rows, len(columns), dimmed=True)
    blank = []
    for layer, groups, *column in zip(layers, columns, *axes, strict=True):
        blank += column[len(groups) :]
        for axis, maps in zip(column, groups, strict=False):
            draw_maps(axis, sample, layer, maps)
            name = f', {maps[0].name}' if len(groups) > 1 else ''
            panels.set_title(axis, f'{layer.title}{name}')
            panels.mark_query(axis, point)
    panels.fill_blank(blank, sample)
    panels.add_color_bar(figure, axes, panels.RELATIVE)
    panels.set_caption(
        figure,
        'What the query (star) attends to, averaged over heads, in the last layer of '
        'each stage, or in layers at equal distances of a model without stages. '
        'A square or a dot is a key. White outlines surround the keys of the query '
        'where these are not the whole feature map.',
    )
    return figure


def draw_sampled_keys(sample: Sample) -> Figure:
    """Draw where deformable attention (DAT) samples its keys, and what they receive.

    A column per stage, for its last deformable layer. Top: keys of all groups of heads;
    the area of a dot is proportional to the attention that the key receives from all
    queries. Bottom: offsets of the first group of heads, at most 4x4 of them.
    """
    layers = choose_layers(x for x in sample.recording.layers if x.samples_keys)
    figure, axes = panels.make_pairs(sample, len(layers))
    for layer, top, bottom in zip(layers, *axes, strict=True):
        received = received_attention(layer.layer, layer.x)
        keys = torch.cat([group.keys[0] for group in received])
        shares = torch.cat([group.share[0] for group in received])
        _draw_keys(top, _to_image(sample, layer, keys), shares)
        panels.set_title(top, f'{layer.title}: {len(keys)} keys')
        _draw_offsets(bottom, sample, layer, received[0].keys[0])
        name = f', group 1 of {len(received)}' if len(received) > 1 else ''
        panels.set_title(bottom, f'offsets{name}')
    panels.add_color_bar(
        figure, axes, 'attention received, relative to the largest', overlaid=False
    )
    panels.set_caption(
        figure,
        'Keys that deformable attention samples. Top: larger and lighter dots receive '
        'more attention from all queries; the keys of all groups of heads. '
        'Bottom: arrows from the regular grid to some of the sampled keys.',
    )
    return figure


def _draw_offsets(
    axis: Axes, sample: Sample, layer: LayerRecording, keys: Tensor
) -> None:
    """Draw arrows from the grid to some of the first group's keys (y, x), (M, 2)."""
    size = layer.layer.reference_locations(layer.x).shape[2:4]
    rows, columns = (
        torch.linspace(0, length - 1, min(length, MAX_ARROWS)).round().long()
        for length in size
    )
    some = (rows[:, None] * size[1] + columns).flatten()
    starts = _to_image(sample, layer, reference_points(layer.layer, layer.x)[0, 0])
    ends = _to_image(sample, layer, keys)
    axis.scatter(*starts.T.numpy(), s=3, c='white', zorder=2)
    steps = (ends - starts)[some].T.numpy()
    style = dict(color='white', edgecolor='black', linewidth=0.3, width=0.008)
    units = dict(angles='xy', scale_units='xy', scale=1)
    axis.quiver(*starts[some].T.numpy(), *steps, zorder=3, **units, **style)


def draw_routed_regions(sample: Sample, point: Point) -> Figure:
    """Draw the regions that a query's region is routed to (BiFormer).

    A column per stage, for its last routed layer. Top: regions, colored by the softmax
    of their affinity to the query's region, which has a blue outline. Bottom: attention
    to the tokens of these regions, averaged over heads. ``point`` is the query, see
    :func:`draw_attention`.
    """
    layers = choose_layers(x for x in sample.recording.layers if x.routes_regions)
    figure, axes = panels.make_pairs(sample, len(layers), dimmed=True)
    for layer, top, bottom in zip(layers, *axes, strict=True):
        (attention,) = query_maps(sample, layer, point)
        with torch.no_grad():
            routing = layer.layer.regions(layer.x)
        (_, columns), (h, w) = routing.grid, routing.region
        y, x = divmod(sample.query_at(point, layer), layer.x.shape[-1])
        own = y // h * columns + x // w  # the region of the query
        regions = region_rectangles(layer, routing)
        routes, scores = routing.routes[0, own], routing.scores[0, own]
        panels.fill_rectangles(top, sample, regions[routes], scores)
        _fill_keys(bottom, sample, layer, attention)
        for axis in (top, bottom):
            for outlined, color, width in (
                (regions, FAINT, 0.4),
                (regions[routes], 'white', 0.8),
                (regions[own][None], panels.QUERY_COLOR, 1.6),
            ):
                style = dict(facecolors='none', edgecolors=color, linewidths=width)
                panels.draw_rectangles(axis, sample, outlined, **style)
            panels.mark_query(axis, point)
        panels.set_title(top, f'{layer.title}: {len(routes)} of {len(regions)} regions')
        panels.set_title(bottom, 'attention to their tokens')
    panels.add_color_bar(figure, axes, 'affinity or ' + panels.RELATIVE)
    panels.set_caption(
        figure,
        'Top: the regions (white outlines) to which the region (blue) of the query '
        '(star) is routed, by their affinity. Bottom: attention of the query to the '
        'tokens of these regions, averaged over heads.',
    )
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


def choose_layers(layers: Iterable[LayerRecording]) -> list[LayerRecording]:
    """Return the last layer of every stage; of a single stage, at most four layers."""
    layers = list(layers)
    last = list({layer.stage: layer for layer in layers}.values())
    if len(last) > 1:
        return last
    count = min(len(layers), MAX_LAYERS)
    return [layers[(i + 1) * len(layers) // count - 1] for i in range(count)]


@torch.no_grad()
def query_maps(
    sample: Sample, layer: LayerRecording, point: Point
) -> tuple[AttentionMap, ...]:
    """Return the attention maps of the query at a point of the image."""
    query = torch.tensor([sample.query_at(point, layer)], device=layer.x.device)
    return layer.layer.attention_maps(layer.x, query)


def _panel_maps(
    sample: Sample, layer: LayerRecording, point: Point
) -> list[list[AttentionMap]]:
    """Return the attention maps of a query by panel: sampled keys share one."""
    maps = query_maps(sample, layer, point)
    if maps[0].extent == POINT:
        return [list(maps)]
    return [[attention] for attention in maps]


def draw_maps(
    axis: Axes, sample: Sample, layer: LayerRecording, maps: Sequence[AttentionMap]
) -> None:
    """Draw the keys of the only query of the attention maps of a panel.

    Sampled keys are dots; others are squares of a single map, which are outlined unless
    they cover the feature map.
    """
    if maps[0].extent == POINT:
        keys = torch.cat([x.locations()[0, 0] for x in maps])
        weights = torch.cat([x.weights[0].mean(0)[0] for x in maps])
        _draw_keys(axis, _to_image(sample, layer, keys), weights)
        return
    (attention,) = maps
    keys = _fill_keys(axis, sample, layer, attention)
    if len(keys) < attention.keys.shape[1]:
        rectangles = key_rectangles(layer, keys.unique(dim=0), attention.extent)
        panels.outline_rectangles(axis, sample, rectangles)


def _fill_keys(
    axis: Axes, sample: Sample, layer: LayerRecording, attention: AttentionMap
) -> Tensor:
    """Draw the keys that are not masked as squares, and return them, (M, 2)."""
    weights = attention.weights[0].mean(0)[0]  # (M,)
    weights, keys = (x[weights > 0] for x in (weights, attention.locations()[0, 0]))
    rectangles = key_rectangles(layer, keys, attention.extent)
    panels.fill_rectangles(axis, sample, rectangles, weights)
    return keys


def _to_image(sample: Sample, layer: LayerRecording, cells: Tensor) -> Tensor:
    """Transform (y, x) in cells of a feature map to (x, y) in pixels of the image."""
    return sample.transform.to_image(cells.flip(-1).cpu() * layer.stride)


def _draw_keys(axis: Axes, keys: Tensor, weights: Tensor) -> None:
    share = (weights / weights.max()).cpu()
    style = dict(c=share.numpy(), cmap=panels.HEAT, vmin=0, vmax=1, alpha=0.85)
    largest = LARGEST_DOT * min(MANY_DOTS / len(keys), 1) ** 0.5
    panels.draw_dots(axis, keys, 2 + largest * share, **style)
