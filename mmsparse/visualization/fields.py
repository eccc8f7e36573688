"""Drawing of the pixels that the maps of a backbone depend on."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmsparse.visualization.measures import receptive_field
from mmsparse.visualization.panels import HEAT, lay_cells, mark_point, panels, title
from mmsparse.visualization.sample import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHARE = 0.5  # of the gradient, whose pixels are counted


def draw_receptive_field(
    scene: Sample, backbone: nn.Module, point: tuple[float, float]
) -> 'Figure':
    """Draw the effective receptive field of the cell at a point, a panel for each map.

    Colors are of the square root of the gradient, which else is seen at its peak
    alone.

    Args:
        scene: The picture and what was seen of it.
        backbone: That of the model.
        point: (x, y) in pixels of the picture.

    Returns:
        The figure. Titles tell the part of the pixels that have half of the gradient.

    Raises:
        ValueError: The point is not on the picture, or not seen by the model.
    """
    scene.frame.check_point(point)
    inputs = scene.seen.inputs
    place = tuple(scene.frame.to_input(torch.tensor(point)).tolist())
    with torch.no_grad():
        sizes = [tuple(x.shape[-2:]) for x in backbone(inputs)]
    figure, axes = panels(scene, 1, len(sizes), dimmed=True)
    height, width = inputs.shape[-2:]
    for i, (axis, size) in enumerate(zip(axes[0], sizes, strict=True)):
        strength = receptive_field(backbone, inputs, place, output=i)
        lay_cells(axis, scene, strength.sqrt(), (width, height), HEAT)
        ranked = strength.flatten().sort(descending=True).values.cumsum(0)
        count = int((ranked < SHARE * ranked[-1]).sum()) + 1
        part = count / strength.numel()
        title(axis, f'{size[0]}x{size[1]} cells: half in {part:.1%}')
        mark_point(axis, point)
    return figure
