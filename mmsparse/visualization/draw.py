"""Draw every figure that a sample has data for."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from mmsparse.visualization import attention, detection, detr
from mmsparse.visualization.image_transform import Pixels, Point
from mmsparse.visualization.receptive_field import draw_receptive_field
from mmsparse.visualization.sample import Sample


def list_drawings(
    sample: Sample, backbone: nn.Module | None = None
) -> dict[str, Callable[[Point], Figure]]:
    """List the figures that a sample has data for.

    Args:
        sample: The sample.
        backbone: Backbone of the model, to draw its receptive field.

    Returns:
        Name to function that draws the figure for a query (x, y) in pixels of the
        image; it raises ValueError if the query is outside of the image or was cropped.
    """
    recording, found = sample.recording, {}
    if recording.layers:
        found['attention'] = partial(attention.draw_attention, sample)
    if any(layer.samples_keys for layer in recording.layers):
        found['sampled_keys'] = lambda point: attention.draw_sampled_keys(sample)
    if any(layer.routes_regions for layer in recording.layers):
        found['routed_regions'] = partial(attention.draw_routed_regions, sample)
    if recording.tokens is not None:
        found['foreground'] = lambda point: detection.draw_foreground_scores(sample)
        found['kept_tokens'] = lambda point: detection.draw_kept_tokens(sample)
    if recording.sampling:
        found['sampling_locations'] = partial(detection.draw_sampling_locations, sample)
    if recording.cross_attention:
        found['queries'] = lambda point: detr.draw_queries(sample)
    if detr.encoder_layers(sample):
        found['encoder_points'] = partial(detr.draw_encoder_points, sample)
    if backbone is not None and recording.output_sizes:
        found['receptive_field'] = partial(draw_receptive_field, sample, backbone)
    return found


def draw_all(
    sample: Sample, point: Point, backbone: nn.Module | None = None
) -> Iterator[tuple[str, Figure]]:
    """Draw every figure that a sample has data for.

    Args:
        sample: The sample.
        point: (x, y) of the query in pixels of the image.
        backbone: Backbone of the model, to draw its receptive field.

    Yields:
        Name and figure.

    Raises:
        ValueError: The point is outside of the image or was cropped.
    """
    sample.transform.check_point(point)
    for name, draw in list_drawings(sample, backbone).items():
        yield name, draw(point)


def rasterize(figure: Figure, dpi: float = 130) -> Pixels:
    """Render a figure; return its pixels as RGB, (H, W, 3)."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
