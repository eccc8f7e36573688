"""Foreground loss, which supervises the token selector by the boxes.

:class:`ForegroundSupervision` adds it to a head of mmdet.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmdet.structures import SampleList
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from mmsparse.models.detectors.selective_transformer import LevelSizes, ScoredTokens
from mmsparse.models.layers.common import check_choice
from mmsparse.ops.foreground import binary_focal_loss, cells_by_reach, cells_by_size

ASSIGNMENTS = {'reach': cells_by_reach, 'size': cells_by_size}
NORMS = ('image', 'batch')
CELLS_PER_LEVEL = 8  # the largest reach of a box on a level, in strides


class ForegroundLoss(nn.Module):
    """Focal loss of the foreground logits of all tokens.

    Paper: `Focus-DETR <https://arxiv.org/abs/2307.12612>`_, section 3.

    Args:
        strides: Stride of every level, in pixels.
        size_ranges: Smallest and largest box size of every level, in pixels, measured
            according to ``assign``. By default the ranges of ``reach`` end at eight
            strides, and those of ``size`` overlap by half.
        assign: Box size that decides whether a token inside a box is foreground:
            ``reach``, the distance from the token to the farthest side, as released, or
            ``size``, half the longer side of the box, as in the paper.
        norm: Normalize by the number of foreground tokens of each ``image`` and average
            over images, as released, or by that of the whole ``batch``.
        alpha: Weight of the foreground; the background has 1 - alpha.
        gamma: Focusing exponent; down-weights well-classified tokens.
        loss_weight: Weight of the loss.

    Raises:
        ValueError: ``assign`` or ``norm`` is unknown, or the numbers of ``size_ranges``
            and ``strides`` differ.
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
        """Compute the loss of a batch.

        Args:
            logits: Foreground logits, padding included, (B, N).
            boxes: (x1, y1, x2, y2) in pixels, one (M, 4) per image.
            level_sizes: Height and width of every level.

        Returns:
            A scalar.
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
            boxes: (x1, y1, x2, y2) in pixels, one (M, 4) per image.
            level_sizes: Height and width of every level.

        Returns:
            True for foreground, (B, N).
        """
        # Boxes added by padding contain no cell.
        padded = pad_sequence(list(boxes), batch_first=True, padding_value=-1.0)
        levels = zip(level_sizes, self.strides, self.size_ranges, strict=True)
        return torch.cat([self.mark(padded, *x[:2], *x[2]) for x in levels], dim=1)


def _default_ranges(
    strides: Sequence[int], overlapping: bool
) -> list[tuple[float, float]]:
    ends = [CELLS_PER_LEVEL * stride for stride in strides[:-1]]
    if not overlapping:
        return list(pairwise((-1, *ends, float('inf'))))
    # Every range begins at the middle of the previous one.
    starts = (0, *ends)
    return [
        *((start, 2 * middle - start) for start, middle in pairwise(starts)),
        (starts[-1], float('inf')),
    ]


class ForegroundSupervision:
    """Mixin that adds :class:`ForegroundLoss` to a head of mmdet's DETRs.

    Args:
        loss_foreground: Arguments of :class:`ForegroundLoss`.
        **arguments: Those of the head.
    """

    def __init__(
        self, loss_foreground: Mapping[str, Any] | None = None, **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        options = {} if loss_foreground is None else loss_foreground
        self.loss_foreground = ForegroundLoss(**options)

    def loss(
        self,
        tokens: ScoredTokens,
        level_sizes: LevelSizes,
        batch_data_samples: SampleList,
        **outputs: Any,
    ) -> dict[str, Tensor]:
        """Compute the losses of the head and ``loss_foreground``."""
        losses = super().loss(batch_data_samples=batch_data_samples, **outputs)
        boxes = [sample.gt_instances.bboxes for sample in batch_data_samples]
        losses['loss_foreground'] = self.loss_foreground(
            tokens.logits, boxes, level_sizes
        )
        return losses
