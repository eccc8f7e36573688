"""Compute and draw the effective receptive field of a backbone."""

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmsparse.visualization import panels
from mmsparse.visualization.image_transform import Point
from mmsparse.visualization.sample import Sample

SHARE = 0.5  # of the gradient, outlined
DETAIL = 24  # of the longer side of the input; the field is averaged over less


def draw_receptive_field(sample: Sample, backbone: nn.Module, point: Point) -> Figure:
    """Draw the effective receptive field at a point, a panel per feature map.

    Colors show the square root of the gradient, averaged over squares of a 24th of the
    input, whose strongest half a white line surrounds; the title says in how much of
    the image half of the gradient is, before averaging. ``point`` (x, y) is in pixels
    of the image; one outside of it raises ValueError.
    """
    sample.transform.check_point(point)
    inputs = sample.recording.inputs
    x, y = sample.transform.to_input(torch.tensor(point)).tolist()
    with torch.no_grad():
        sizes = [tuple(feature.shape[-2:]) for feature in backbone(inputs)]
    figure, axes = panels.make_panels(sample, 1, len(sizes), dimmed=True)
    corners = torch.tensor([[0.0, 0.0], list(inputs.shape[:-3:-1])])
    corners = sample.transform.to_image(corners)
    for i, (axis, (rows, columns)) in enumerate(zip(axes[0], sizes, strict=True)):
        field = receptive_field(backbone, inputs, (x, y), output=i)
        ranked = field.flatten().sort(descending=True).values.cumsum(0)
        part = (int((ranked < SHARE * ranked[-1]).sum()) + 1) / field.numel()
        window = max(field.shape) // DETAIL // 2 * 2 + 1
        field = F.avg_pool2d(field[None], window, 1, window // 2)[0]
        shares = (field / field.max()).sqrt()
        colors = panels.heat_colors(shares)
        panels.overlay_cells(axis, sample, corners, colors, smooth=True)
        _outline_half(axis, field, corners)
        panels.set_title(axis, f'{rows}x{columns} cells: half in {part:.1%}')
        panels.mark_query(axis, point)
    panels.add_color_bar(figure, axes, 'square root of the gradient, relative')
    panels.set_caption(
        figure,
        'Effective receptive field: pixels that influence the cell of the query (star) '
        'on each feature map of the backbone. The title says which part of the image '
        'has half of the gradient; the white line surrounds half of it as drawn.',
    )
    return figure


def _outline_half(axis: Axes, field: Tensor, corners: Tensor) -> None:
    """Draw the contour of the strongest half of a field, (H, W), in a panel."""
    ranked = field.flatten().sort(descending=True).values
    totals = ranked.cumsum(0)
    level = float(ranked[int((totals < SHARE * totals[-1]).sum())])
    centers = (
        start + (torch.arange(count) + 0.5) / count * (end - start)
        for start, end, count in zip(
            *corners.tolist(), reversed(field.shape), strict=True
        )
    )
    style = dict(levels=[level], colors='white', linewidths=1)
    axis.contour(*(x.numpy() for x in centers), field.cpu().numpy(), **style)


def receptive_field(
    backbone: nn.Module, inputs: Tensor, point: Point, output: int = -1
) -> Tensor:
    """Compute the gradient of one cell of a feature map by the input pixels.

    ``inputs`` are images, (B, C, H, W). ``point`` (x, y), in their pixels, selects the
    cell of feature map number ``output``. The result, (H, W), is the absolute gradient
    of the sum of the cell's channels, summed over batch and channels, divided by its
    maximum.

    Source: Understanding the Effective Receptive Field, arXiv 1701.04128, section 3.
    """
    inputs = inputs.detach().clone().requires_grad_()
    with torch.enable_grad():
        features = backbone(inputs)[output]
        (rows, columns), (height, width) = features.shape[-2:], inputs.shape[-2:]
        row = min(int(point[1] * rows / height), rows - 1)
        column = min(int(point[0] * columns / width), columns - 1)
        (gradient,) = torch.autograd.grad(features[..., row, column].sum(), inputs)
    strength = gradient.abs().sum((0, 1))
    return strength / strength.max().clamp(min=torch.finfo(strength.dtype).tiny)
