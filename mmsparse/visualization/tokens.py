"""Drawings of the tokens of a Focus-DETR: their scores, and which layers keep them."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmsparse.visualization.panels import HEAT, lay_cells, panels, title
from mmsparse.visualization.sample import Sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OBJECT_COLOR = '#00e5ff'


def draw_foreground(scene: Sample) -> 'Figure':
    """Draw how much each token is taken for foreground, a panel for each level.

    Args:
        scene: A picture and the tokens seen of it.

    Returns:
        The figure. Colors go from probability 0 to 1.
    """
    tokens = scene.seen.tokens
    levels = level_maps(scene, tokens.scores[0].sigmoid())
    figure, axes = panels(scene, 1, len(levels))
    for axis, (values, end) in zip(axes[0], levels, strict=True):
        lay_cells(axis, scene, values, end, HEAT, top=1)
        rows, columns = values.shape
        title(axis, f'{rows}x{columns} cells, up to {values.max():.2f}')
    return figure


def draw_kept_tokens(scene: Sample) -> 'Figure':
    """Draw a row of panels for each level, and in it one for each layer.

    Cells that the layer does not keep are dark; object tokens have a dot.

    Args:
        scene: A picture and the tokens seen of it.

    Returns:
        The figure.
    """
    tokens = scene.seen.tokens
    centers = tokens.kept.centers[0].cpu()
    kept, objects = tokens.kept.kept[0], tokens.objects[0].cpu()
    sizes = tokens.kept.level_sizes
    ends = torch.tensor([rows * columns for rows, columns in sizes]).cumsum(0).tolist()
    figure, axes = panels(scene, len(sizes), len(kept))
    for layer, mask in enumerate(kept):
        for level, (values, end) in enumerate(level_maps(scene, mask)):
            axis = axes[level][layer]
            lay_cells(axis, scene, values, end)
            here = objects[layer].clone()
            here[: ends[level] - values.numel()] = False
            here[ends[level] :] = False
            dots = scene.to_pixels(centers[here])
            axis.scatter(*dots.T.numpy(), s=3, c=OBJECT_COLOR, zorder=3)
            if level == 0:
                share = mask.float().mean()
                title(axis, f'layer {layer + 1}: {share:.0%} kept')
            if layer == 0:
                rows, columns = values.shape
                axis.set_ylabel(f'{rows}x{columns} cells', fontsize=9)
    return figure


def level_maps(scene: Sample, values: Tensor) -> list[tuple[Tensor, list[float]]]:
    """Put the tokens of a picture back into maps.

    Args:
        scene: The picture and the tokens seen of it.
        values: One for each token, (N,).

    Returns:
        For each level a map, (rows, columns), and where it ends: (x, y) in pixels of
        the input.
    """
    kept = scene.seen.tokens.kept
    lengths = [rows * columns for rows, columns in kept.level_sizes]
    size = torch.tensor(scene.frame.size[::-1])
    found = []
    for size_of_level, centers, part in zip(
        kept.level_sizes,
        kept.centers[0].cpu().split(lengths),
        values.cpu().split(lengths),
        strict=True,
    ):
        # The first center is half a cell from the border of the picture.
        end = 2 * centers[0] * torch.tensor(size_of_level[::-1]) * size
        found.append((part.view(size_of_level), end.tolist()))
    return found
