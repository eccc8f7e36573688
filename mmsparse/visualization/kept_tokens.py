"""The tokens that the layers of a Focus-DETR keep, on the picture."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mmsparse.evaluation import KeptTokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 2.6  # inches
DARKNESS = 0.75  # of what is not kept
BOX_COLOUR = '#ffd21f'


def draw_kept_tokens(
    picture: NDArray[np.uint8], tokens: KeptTokens, boxes: Tensor
) -> 'Figure':
    """Draw a row of panels for each level, and in it one for each layer.

    Cells that the layer does not keep are dark. Boxes are drawn in all panels.

    Args:
        picture: RGB, (H, W, 3), of any resolution.
        tokens: Those of this picture alone, a batch of one.
        boxes: (x1, y1, x2, y2) in pixels of the picture, (M, 4).

    Returns:
        The figure.

    Raises:
        ValueError: There is more than one picture in the batch.
    """
    from matplotlib.figure import Figure  # slow to import

    if len(tokens.kept) != 1:
        raise ValueError(f'tokens must be of one picture; got {len(tokens.kept)}.')
    layers, levels = tokens.kept.shape[1], len(tokens.level_sizes)
    height, width = picture.shape[:2]
    figure = Figure(
        (PANEL * layers, PANEL * levels * height / width + 0.3), layout='constrained'
    )
    axes = figure.subplots(levels, layers, squeeze=False)
    lengths = [rows * columns for rows, columns in tokens.level_sizes]
    centres = tokens.centres[0].cpu().split(lengths)
    kept = tokens.kept[0].cpu().split(lengths, dim=1)
    for level, size in enumerate(tokens.level_sizes):
        # The first centre is half a cell from the border.
        cell = 2 * centres[level][0] * centres[level].new_tensor([width, height])
        ends = (cell * cell.new_tensor(size[::-1])).tolist()
        for layer, axis in enumerate(axes[level]):
            mask = kept[level][layer].view(size)
            axis.imshow(picture, extent=(0, width, height, 0))
            _darken(axis, ~mask.numpy(), ends)
            _frame(axis, boxes)
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            if level == 0:
                share = tokens.kept[0, layer].float().mean()
                axis.set_title(f'layer {layer + 1}: {share:.0%} kept', fontsize=9)
        axes[level][0].set_ylabel(f'{size[0]}x{size[1]} cells', fontsize=9)
    return figure


def _darken(axis: 'Axes', dark: NDArray[np.bool_], ends: list[float]) -> None:
    shade = np.zeros((*dark.shape, 4), dtype=np.float32)
    shade[..., 3] = DARKNESS * dark
    axis.imshow(shade, extent=(0, ends[0], ends[1], 0), interpolation='nearest')


def _frame(axis: 'Axes', boxes: Tensor) -> None:
    from matplotlib.patches import Rectangle

    for x1, y1, x2, y2 in boxes.tolist():
        rectangle = Rectangle(
            (x1, y1), x2 - x1, y2 - y1, fill=False, color=BOX_COLOUR, linewidth=1
        )
        axis.add_patch(rectangle)
