"""Drawings of attention: of one query, of all to sampled keys, and of regions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.ops.routing import Routing
from mmsparse.visualization.measures import attention_received, reference_positions
from mmsparse.visualization.panels import (
    HEAT,
    QUERY_COLOR,
    fill_rectangles,
    mark_point,
    outline_rectangles,
    panels,
    title,
)
from mmsparse.visualization.recorder import LayerRecording
from mmsparse.visualization.sample import Sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]
MOST_GROUPS = 4
LARGEST_DOT = 90  # square points


def last_of_stages(layers: Sequence[LayerRecording]) -> list[LayerRecording]:
    """Take the last layer of every stage."""
    return list({seen.stage: seen for seen in layers}.values())


def draw_attention(
    scene: Sample, point: Point, layers: Sequence[LayerRecording] | None = None
) -> 'Figure':
    """Draw what one query attends to, a column for each layer.

    Rows are the groups of heads that share their keys, at most four; the mean of the
    heads of a group is drawn, the largest weight of a panel hottest.

    Args:
        scene: The picture and what was seen of it.
        point: (x, y) of the query, in pixels of the picture.
        layers: Which layers; the last of every stage if None.

    Returns:
        The figure.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    scene.frame.check_point(point)
    layers = last_of_stages(scene.seen.layers) if layers is None else layers
    columns = [_look(scene, seen, point) for seen in layers]
    rows = min(max(len(looks) for looks in columns), MOST_GROUPS)
    figure, axes = panels(scene, rows, len(columns), dimmed=True)
    for column, (seen, looks) in enumerate(zip(layers, columns, strict=True)):
        for row in range(rows):
            axis = axes[row][column]
            if row >= len(looks):
                axis.set_visible(False)
                continue
            _draw_look(axis, scene, seen, looks[row])
            title(axis, ', '.join(filter(None, (seen.title, looks[row].name))))
            mark_point(axis, point)
    return figure


def draw_sampled_keys(scene: Sample) -> 'Figure':
    """Draw where deformable attention samples its keys, and what they receive.

    A row for the last deformable layer of every stage, a column for each group, at most
    four. Lines come from where a key would be without its offset; dots are as large as
    the attention that the key receives from all queries of the map.

    Args:
        scene: The picture and what was seen of it.

    Returns:
        The figure.
    """
    layers = last_of_stages(
        [
            seen
            for seen in scene.seen.layers
            if hasattr(seen.layer, 'sampling_locations')
        ]
    )
    received = [attention_received(seen.layer, seen.x) for seen in layers]
    columns = min(max(map(len, received)), MOST_GROUPS)
    figure, axes = panels(scene, len(layers), columns)
    for row, (seen, groups) in enumerate(zip(layers, received, strict=True)):
        with torch.no_grad():
            starts = reference_positions(seen.layer, seen.x)[0]
        for column, axis in enumerate(axes[row]):
            if column >= len(groups):
                axis.set_visible(False)
                continue
            group = groups[column]
            ends = _to_picture(scene, seen, group.keys[0])
            lines = _to_picture(scene, seen, starts[column]), ends
            _draw_moves(axis, *lines)
            _draw_dots(axis, ends, group.share[0])
            title(axis, f'{seen.title}, {group.name} of {len(groups)}')
    return figure


def draw_regions(scene: Sample, point: Point) -> 'Figure':
    """Draw which regions the region of a query is routed to, and where it looks there.

    A column for the last routed layer of every stage. Above, the regions by the softmax
    of their affinities to the query's, which is framed; below, the attention to their
    tokens, the mean of the heads.

    Args:
        scene: The picture and what was seen of it.
        point: (x, y) of the query, in pixels of the picture.

    Returns:
        The figure.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    scene.frame.check_point(point)
    layers = last_of_stages(
        [seen for seen in scene.seen.layers if hasattr(seen.layer, 'regions')]
    )
    figure, axes = panels(scene, 2, len(layers), dimmed=True)
    for column, seen in enumerate(layers):
        above, below = axes[0][column], axes[1][column]
        with torch.no_grad():
            routing = seen.layer.regions(seen.x)
        own = region_of(seen, routing, _query(scene, seen, point))
        everything = region_rectangles(seen, routing)
        routes = routing.routes[0, own]
        fill_rectangles(above, scene, everything[routes], routing.scores[0, own])
        (look,) = _look(scene, seen, point)
        _draw_look(below, scene, seen, look)
        for axis in (above, below):
            outline_rectangles(axis, scene, everything, 'white', 0.4, alpha=0.5)
            outline_rectangles(axis, scene, everything[routes], 'white')
            outline_rectangles(axis, scene, everything[own][None], QUERY_COLOR, 1.6)
            mark_point(axis, point)
        title(above, f'{seen.title}, {len(routes)} of {len(everything)} regions')
        title(below, 'attention to their tokens')
    return figure


def region_rectangles(seen: LayerRecording, routing: Routing) -> Tensor:
    """The regions as (x1, y1, x2, y2) in pixels of the input, (R, 4)."""
    (rows, columns), (h, w) = routing.grid, routing.region
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    sides = torch.stack([x * w, y * h, (x + 1) * w, (y + 1) * h], dim=-1)
    return (sides.flatten(0, 1) * seen.stride).float()


def region_of(seen: LayerRecording, routing: Routing, query: int) -> int:
    """The region that a position of the map lies in."""
    (_, columns), (h, w) = routing.grid, routing.region
    y, x = divmod(query, seen.x.shape[-1])
    return y // h * columns + x // w


def _look(
    scene: Sample, seen: LayerRecording, point: Point
) -> tuple[AttentionMap, ...]:
    query = torch.tensor([_query(scene, seen, point)], device=seen.x.device)
    with torch.no_grad():
        return seen.layer.attention_maps(seen.x, query)


def _query(scene: Sample, seen: LayerRecording, point: Point) -> int:
    return seen.query_at(scene.frame.to_input(torch.tensor(point)))


def _draw_look(
    axis: 'Axes', scene: Sample, seen: LayerRecording, look: AttentionMap
) -> None:
    weights = look.weights[0].mean(0)[0]  # (M,)
    places = look.locations()[0, 0]
    if look.extent == POINT:
        _draw_dots(axis, _to_picture(scene, seen, places), weights)
    else:
        half = places.new_tensor(look.extent) / 2
        sides = torch.cat([(places - half).flip(-1), (places + half).flip(-1)], dim=-1)
        fill_rectangles(axis, scene, sides * seen.stride, weights)


def _to_picture(scene: Sample, seen: LayerRecording, places: Tensor) -> Tensor:
    """(y, x) in cells of the map to (x, y) in pixels of the picture, (..., 2)."""
    return scene.frame.to_picture(places.flip(-1).cpu() * seen.stride)


def _draw_dots(axis: 'Axes', places: Tensor, weights: Tensor) -> None:
    share = (weights / weights.max()).cpu().numpy()
    axis.scatter(
        *places.T.numpy(),
        s=2 + LARGEST_DOT * share,
        c=share,
        cmap=HEAT,
        vmin=0,
        vmax=1,
        alpha=0.85,
        edgecolors='white',
        linewidths=0.4,
        zorder=3,
    )


def _draw_moves(axis: 'Axes', starts: Tensor, ends: Tensor) -> None:
    from matplotlib.collections import LineCollection

    lines = torch.stack([starts, ends], dim=1).numpy()
    axis.add_collection(LineCollection(lines, colors='white', linewidths=0.6))
    axis.scatter(*starts.T.numpy(), s=2, c='white', zorder=2)
