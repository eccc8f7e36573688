"""Draw the attention of several models on the same image, next to each other."""

from collections.abc import Callable, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mmsparse.errors import UsageError
from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.visualization import attention, detection, detr, panels
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.recorder import LayerRecording
from mmsparse.visualization.sample import Sample

Samples = dict[str, Sample]  # of one image, by the name of the model
LARGEST_DOT = 40  # pt^2


def list_comparisons(samples: Samples) -> dict[str, Callable[[Point], Figure]]:
    """List the figures that at least two models have data for.

    Args:
        samples: The same image, recorded with every model, by the model's name.

    Returns:
        Name to function that draws the figure for a query (x, y) in pixels of the
        image.

    Raises:
        UsageError: No two models have anything in common.
    """
    found = {}
    for name, (has_data, draw) in COMPARISONS.items():
        able = {title: x for title, x in samples.items() if has_data(x)}
        if len(able) > 1:
            found[name] = lambda point, draw=draw, able=able: draw(able, point)
    if not found:
        has = '; '.join(f'{title} has {_parts(x)}' for title, x in samples.items())
        raise UsageError(
            'models to compare must both have attention layers, an encoder that '
            f'selects tokens, or a decoder with queries; {has}'
        )
    return found


def compare_attention(samples: Samples, point: Point) -> Figure:
    """Draw the attention of one query, a row per model and a column per layer.

    Shown is the last layer of each stage, or four layers of a model without stages.
    Weights are averaged over all heads; those of keys that summarize several cells are
    divided among these.

    Sources: Vision Transformer with Deformable Attention, arXiv 2201.00520, figure 1;
    Shunted Self-Attention, arXiv 2111.15193, figure 1.
    """
    rows = [attention.choose_layers(x.recording.layers) for x in samples.values()]
    columns = max(map(len, rows))
    figure, axes = _make_rows(samples, columns)
    for sample, layers, row in zip(samples.values(), rows, axes, strict=True):
        for axis, layer in zip(row, layers, strict=False):
            _draw_density(axis, sample, layer, point)
            panels.mark_query(axis, point)
        panels.fill_blank(row[len(layers) :], sample)
    panels.add_color_bar(figure, axes, panels.RELATIVE)
    panels.set_caption(
        figure,
        'What the same query (star) attends to in each model, averaged over heads, in '
        'the last layer of each stage, or in layers at equal distances of a model '
        'without stages. Squares are cells of a feature map, dots are keys sampled '
        'between them. White outlines surround the keys of the query where these are '
        'not the whole feature map.',
    )
    return figure


def compare_kept_tokens(samples: Samples, point: Point) -> Figure:
    """Draw how many encoder layers keep each token, a row per model.

    Columns are feature levels.
    """
    levels = {
        title: detection.split_levels(
            sample, sample.recording.tokens.kept.kept[0].float().mean(0)
        )
        for title, sample in samples.items()
    }
    columns = max(map(len, levels.values()))
    figure, axes = _make_rows(samples, columns, dimmed=False)
    for (title, found), row in zip(levels.items(), axes, strict=True):
        for axis, (shares, corners) in zip(row, found, strict=False):
            colors = panels.shade_colors(shares)
            panels.overlay_cells(axis, samples[title], corners, colors)
            size = 'x'.join(map(str, shares.shape))
            panels.set_title(axis, f'{size} cells, {shares.mean():.0%} kept')
        panels.fill_blank(row[len(found) :], samples[title])
    panels.set_caption(
        figure,
        'Tokens that the encoders keep on every feature level (columns): bright in all '
        'layers, darker in fewer, darkest in none. Titles give the mean over the '
        'layers.',
    )
    return figure


def compare_queries(samples: Samples, point: Point) -> Figure:
    """Draw what the decoder queries of the best detections attend to, by model."""
    first = next(iter(samples.values()))
    columns = min(len(samples), 3)
    rows = -(-len(samples) // columns)
    figure, axes = panels.make_panels(first.without_predictions(), rows, columns, True)
    flat = [axis for row in axes for axis in row]
    for axis, (title, sample) in zip(flat, samples.items(), strict=False):
        queries = detr.best_queries(sample)
        if sample.recording.cross_attention:
            detr.paint_objects(axis, sample, queries)
        else:
            _draw_sampling(axis, sample, queries)
        panels.set_title(axis, title)
    panels.fill_blank(flat[len(samples) :], first)
    panels.set_caption(
        figure,
        'What the decoder queries of the best detections attend to in the last decoder '
        'layer, all heads, in the color of the box: colored areas with full attention, '
        'dots at the sampling locations, as large as the weight, with deformable '
        'attention.',
    )
    return figure


def _make_rows(
    samples: Samples, columns: int, dimmed: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Return a figure with a row of panels per model, with its predictions."""
    first = next(iter(samples.values()))
    bare = first.without_predictions()
    figure, axes = panels.make_panels(bare, len(samples), columns, dimmed)
    for (title, sample), row in zip(samples.items(), axes, strict=True):
        caption = f'{title}\n{sample.caption}'.strip()
        panels.set_row_title(row[0], caption)
        for axis in row:
            panels.draw_predictions(axis, sample)
        panels.name_classes(row[0], sample)
    return figure, axes


def _draw_density(
    axis: Axes, sample: Sample, layer: LayerRecording, point: Point
) -> None:
    maps = attention.query_maps(sample, layer, point)
    heads = sum(x.weights.shape[1] for x in maps)
    if maps[0].extent == POINT or len(maps) == 1:
        attention.draw_maps(axis, sample, layer, maps)
    else:
        size = layer.x.shape[-2:]
        density = sum(_density(x, size) * x.weights.shape[1] / heads for x in maps)
        corners = detr.map_corners(sample, size, layer.stride)
        shares = density / density.max()
        colors = panels.heat_colors(shares)
        panels.overlay_cells(axis, sample, corners, colors)
    keys = sum(x.weights.shape[-1] for x in maps)
    panels.set_title(axis, f'{layer.title}: {keys} keys')


def _density(found: AttentionMap, size: tuple[int, int]) -> Tensor:
    """Divide the attention of the only query among the cells of its keys, (H, W)."""
    weights = found.weights[0].mean(0)[0]  # (M,)
    half = found.keys.new_tensor(found.extent) / 2
    keys = found.locations()[0, 0]
    density = torch.zeros(size, device=weights.device)
    for weight, (top, left), (bottom, right) in zip(
        weights,
        (keys - half).round().int().clamp(min=0).tolist(),
        (keys + half).round().int().tolist(),
        strict=True,
    ):
        cells = density[top:bottom, left:right]
        cells += weight / max(cells.numel(), 1)
    return density


def _draw_sampling(axis: Axes, sample: Sample, queries: Sequence[int]) -> None:
    """Draw the sampling locations of some queries in the last decoder layer."""
    scores, labels, boxes = sample.query_detections()
    layer = sample.recording.sampling[-1]
    for query, color in zip(queries, detr.COLORS, strict=False):
        points = sample.to_pixels(layer.points[0, query].cpu()).flatten(0, -2)
        weights = layer.weights[0, query].flatten().cpu()
        areas = 1 + LARGEST_DOT * weights / weights.max()
        panels.draw_dots(axis, points, areas, color=color, alpha=0.8, linewidths=0.2)
        panels.draw_boxes(axis, boxes[query][None], color, width=1.6)
        name = sample.describe(int(labels[query]), float(scores[query]))
        panels.write(axis, boxes[query, :2].clamp(min=0).tolist(), name, color)


def _parts(sample: Sample) -> str:
    names = [name for name, (has_data, _) in COMPARISONS.items() if has_data(sample)]
    return ', '.join(names).replace('_', ' ')


COMPARISONS: dict[str, tuple[Callable, Callable]] = {
    'attention': (lambda x: x.recording.layers, compare_attention),
    'kept_tokens': (lambda x: x.recording.tokens is not None, compare_kept_tokens),
    'queries': (lambda x: x.recording.detections is not None, compare_queries),
}
