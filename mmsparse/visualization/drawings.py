"""All drawings that there are of a scene."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from mmsparse.visualization.attention import (
    draw_attention,
    draw_regions,
    draw_sampled_keys,
)
from mmsparse.visualization.detections import draw_sampling_points
from mmsparse.visualization.fields import draw_receptive_field
from mmsparse.visualization.sample import Sample
from mmsparse.visualization.tokens import draw_foreground, draw_kept_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(
    scene: Sample, point: tuple[float, float], backbone: nn.Module | None = None
) -> Iterator[tuple[str, 'Figure']]:
    """Draw what there is to see of a scene.

    Args:
        scene: The picture and what was seen of it.
        point: (x, y) of the query, in pixels of the picture.
        backbone: That of the model, for its receptive field; None leaves that out.

    Yields:
        A name and the figure.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    scene.frame.check_point(point)
    seen = scene.seen
    if seen.layers:
        yield 'attention', draw_attention(scene, point)
    if any(hasattr(x.layer, 'sampling_locations') for x in seen.layers):
        yield 'keys', draw_sampled_keys(scene)
    if any(hasattr(x.layer, 'regions') for x in seen.layers):
        yield 'regions', draw_regions(scene, point)
    if seen.tokens is not None:
        yield 'foreground', draw_foreground(scene)
        yield 'kept', draw_kept_tokens(scene)
    if seen.sampling:
        yield 'sampling', draw_sampling_points(scene, point)
    if backbone is not None:
        yield 'field', draw_receptive_field(scene, backbone, point)
