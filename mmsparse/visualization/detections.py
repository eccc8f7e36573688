"""Drawings of the points that detections were read from."""

from typing import TYPE_CHECKING

import torch

from mmsparse.visualization.panels import QUERY_COLOR, frame_boxes, panels, title
from mmsparse.visualization.sample import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_DOT = 60  # square points


def detection_at(scene: Sample, point: tuple[float, float] | None = None) -> int:
    """Choose a query of the decoder: the surest whose box holds a point.

    Args:
        scene: A picture and the detections seen of it.
        point: (x, y) in pixels of the picture; None for the surest of all, which is
            also taken where no box holds the point.

    Returns:
        The number of the query.
    """
    scores, _, boxes = scene.detections()
    if point is not None:
        place = boxes.new_tensor(point)
        holds = ((boxes[:, :2] <= place) & (place < boxes[:, 2:])).all(-1)
        if holds.any():
            scores = scores.masked_fill(~holds, -1)
    return int(scores.argmax())


def draw_sampling_points(
    scene: Sample, point: tuple[float, float] | None = None
) -> 'Figure':
    """Draw the points that a detection reads, a panel for each layer of the decoder.

    Dots are colored by level, and as large as their weight; all heads are drawn.

    Args:
        scene: A picture and the detections seen of it.
        point: (x, y) in pixels of the picture, within the detection.

    Returns:
        The figure.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    from matplotlib import colormaps

    if point is not None:
        scene.frame.check_point(point)
    query = detection_at(scene, point)
    scores, labels, boxes = scene.detections()
    layers = scene.seen.sampling
    figure, axes = panels(scene, 1, len(layers))
    largest = max(float(seen.weights[0, query].max()) for seen in layers)
    for i, (axis, seen) in enumerate(zip(axes[0], layers, strict=True)):
        frame_boxes(axis, boxes[query][None], QUERY_COLOR, width=1.6)
        places = scene.to_pixels(seen.points[0, query].cpu())
        for level, spots in enumerate(places.unbind(1)):
            weights = seen.weights[0, query, :, level].flatten().cpu()
            axis.scatter(
                *spots.flatten(0, 1).T.numpy(),
                s=1 + LARGEST_DOT * (weights / largest).numpy(),
                color=colormaps['tab10'](level),
                edgecolors='white',
                linewidths=0.4,
                alpha=0.8,
                label=f'level {level + 1}',
            )
        title(axis, f'decoder layer {i + 1}')
    figure.suptitle(f'class {int(labels[query])}, {float(scores[query]):.2f}', size=10)
    handles, names = axes[0][0].get_legend_handles_labels()
    legend = figure.legend(handles, names, loc='outside lower center', ncol=len(names))
    for handle in legend.legend_handles:
        handle.set_sizes(torch.tensor([20.0]).numpy())
    return figure
