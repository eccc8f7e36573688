"""Supervision of the token selector by the boxes of the pictures."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmsparse.models.layers.common import check_choice
from mmsparse.ops.foreground import binary_focal_loss, cells_by_reach, cells_by_size

ASSIGNMENTS = {'reach': cells_by_reach, 'size': cells_by_size}
NORMS = ('image', 'batch')
# A level is for boxes up to so many of its strides.
CELLS_OF_A_LEVEL = 8


class ForegroundLoss(nn.Module):
    """Focal loss of the foreground logits of all tokens.

    Paper: `Focus-DETR <https://arxiv.org/abs/2307.12612>`_, section 3.

    Args:
        strides: Pixels from one cell to the next, of every level.
        size_ranges: The least and the greatest box of every level, in pixels, measured
            as ``assign`` says. None takes ranges that end at eight strides for
            ``reach``, and such that overlap by half for ``size``.
        assign: What makes a token inside a box foreground: its ``reach``, the distance
            from the token to the farthest side, as in the release, or half the ``size``
            of the box, as in the paper.
        norm: Divide by the number of foreground tokens of each ``image`` and take the
            mean, as in the release, or by that of the ``batch``.
        alpha: Weight of foreground; background has the rest to 1.
        gamma: Exponent that takes weight from what is told rightly.
        loss_weight: Factor on the loss.

    Raises:
        ValueError: ``assign`` or ``norm`` is unknown, or there are not as many
            ``size_ranges`` as ``strides``.
    """

    def __init__(
        self,
        strides: Sequence[int] = (8, 16, 32, 64),
        size_ranges: Sequence[tuple[float, float]] | None = None,
        assign: str = 'reach',
        norm: str = 'image',
        alpha: float = 0.25,
        gamma: float = 2.0,
        loss_weight: float = 1.5,
    ) -> None:
        super().__init__()
        check_choice('assign', assign, ASSIGNMENTS)
        check_choice('norm', norm, NORMS)
        if size_ranges is None:
            size_ranges = _default_ranges(strides, overlapping=assign == 'size')
        if len(size_ranges) != len(strides):
            raise ValueError(
                f'size_ranges must have one pair for each of the strides {strides}; '
                f'got {size_ranges}.'
            )
        self.strides = tuple(strides)
        self.size_ranges = tuple(size_ranges)
        self.mark = ASSIGNMENTS[assign]
        self.norm = norm
        self.alpha = alpha
        self.gamma = gamma
        self.loss_weight = loss_weight

    def forward(
        self,
        logits: Tensor,
        boxes: Sequence[Tensor],
        level_sizes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Compute the loss.

        Args:
            logits: Foreground logits, padding included, (B, N).
            boxes: (x1, y1, x2, y2) in pixels, one (M, 4) a picture.
            level_sizes: Height and width of every level.

        Returns:
            A number.
        """
        targets = self.targets(boxes, level_sizes)
        sums = binary_focal_loss(logits, targets, self.alpha, self.gamma).sum(1)
        counts = targets.sum(1)
        if self.norm == 'batch':
            return self.loss_weight * sums.sum() / counts.sum().clamp(min=1)
        return self.loss_weight * (sums / counts.clamp(min=1)).mean()

    def targets(
        self, boxes: Sequence[Tensor], level_sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Mark the foreground tokens.

        Args:
            boxes: (x1, y1, x2, y2) in pixels, one (M, 4) a picture.
            level_sizes: Height and width of every level.

        Returns:
            True for foreground, (B, N).
        """
        # The filling holds no cell.
        padded = pad_sequence(list(boxes), batch_first=True, padding_value=-1.0)
        levels = zip(level_sizes, self.strides, self.size_ranges, strict=True)
        return torch.cat([self.mark(padded, *x[:2], *x[2]) for x in levels], dim=1)


def _default_ranges(
    strides: Sequence[int], overlapping: bool
) -> list[tuple[float, float]]:
    ends = [CELLS_OF_A_LEVEL * stride for stride in strides[:-1]]
    if not overlapping:
        return list(pairwise((-1, *ends, float('inf'))))
    # The middle of every range is where the next begins.
    starts = (0, *ends)
    return [
        *((start, 2 * middle - start) for start, middle in pairwise(starts)),
        (starts[-1], float('inf')),
    ]
