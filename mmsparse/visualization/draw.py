"""Draw every figure that a sample has data for."""

from collections.abc import Iterator

from matplotlib.figure import Figure
from torch import nn

from mmsparse.visualization import attention, detection
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.receptive_field import draw_receptive_field
from mmsparse.visualization.sample import Sample


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
    recording = sample.recording
    if recording.layers:
        yield 'attention', attention.draw_attention(sample, point)
    if any(layer.samples_keys for layer in recording.layers):
        yield 'sampled_keys', attention.draw_sampled_keys(sample)
    if any(layer.routes_regions for layer in recording.layers):
        yield 'routed_regions', attention.draw_routed_regions(sample, point)
    if recording.tokens is not None:
        yield 'foreground', detection.draw_foreground_scores(sample)
        yield 'kept_tokens', detection.draw_kept_tokens(sample)
    if recording.sampling:
        yield 'sampling_locations', detection.draw_sampling_locations(sample, point)
    if backbone is not None:
        yield 'receptive_field', draw_receptive_field(sample, backbone, point)
