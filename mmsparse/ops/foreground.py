"""Foreground labels of the cells of a feature map, and focal loss of their scores."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cells_by_reach(
    boxes: Tensor, size: tuple[int, int], stride: int, low: float, high: float
) -> Tensor:
    """Label cells inside a box whose farthest side is at a distance in (low, high].

    Args:
        boxes: (x1, y1, x2, y2) in pixels, (B, M, 4); negative ones hold no cell.
        size: Height and width of the feature map.
        stride: Pixels from one cell to the next.
        low: Lower bound of the distance from the center of a cell to the farthest side
            of the box, in pixels, exclusive.
        high: Upper bound of that distance, inclusive.

    Returns:
        True for foreground, row-major, (B, H * W).

    Source: FCOS, arXiv 1904.01355, section 3.2, as in the release of Focus-DETR.
    """
    inside_y, reach_y = _side_distances(boxes[..., 1::2], size[0], stride)
    inside_x, reach_x = _side_distances(boxes[..., 0::2], size[1], stride)
    near_y, near_x = inside_y & (reach_y <= high), inside_x & (reach_x <= high)
    far_y, far_x = near_y & (reach_y > low), near_x & (reach_x > low)
    return _any_box(far_y, near_x) | _any_box(near_y, far_x)


def cells_by_size(
    boxes: Tensor, size: tuple[int, int], stride: int, low: float, high: float
) -> Tensor:
    """Label cells inside a box whose half longer side is in [low, high].

    Args:
        boxes: (x1, y1, x2, y2) in pixels, (B, M, 4); negative ones hold no cell.
        size: Height and width of the feature map.
        stride: Pixels from one cell to the next.
        low: Lower bound of half the longer side of a box, in pixels, inclusive.
        high: Upper bound of it, inclusive.

    Returns:
        True for foreground, row-major, (B, H * W).

    Source: Focus-DETR, arXiv 2307.12612, section 3.
    """
    half = (boxes[..., 2:] - boxes[..., :2]).amax(-1, keepdim=True) / 2
    inside_y, _ = _side_distances(boxes[..., 1::2], size[0], stride)
    inside_x, _ = _side_distances(boxes[..., 0::2], size[1], stride)
    return _any_box(inside_y & (half >= low) & (half <= high), inside_x)


def _side_distances(sides: Tensor, cells: int, stride: int) -> tuple[Tensor, Tensor]:
    """Return whether cells are between the two sides of boxes, along one axis.

    And the distance of their centers to the farther side; both (B, M, cells).
    """
    centers = torch.arange(cells, device=sides.device) * stride + stride // 2
    before, after = centers - sides[..., :1], sides[..., 1:] - centers
    return torch.minimum(before, after) > 0, torch.maximum(before, after)


def _any_box(rows: Tensor, columns: Tensor) -> Tensor:
    """Return whether a box has both the row and the column of a cell, (B, H * W).

    The matrix product of (B, M, H) and (B, M, W) counts such boxes.
    """
    counts = rows.transpose(1, 2).float() @ columns.float()  # (B, H, W)
    return counts.flatten(1) > 0


def binary_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Compute the focal loss of every element, stable for logits of any size.

    Args:
        logits: Any shape.
        targets: True for positives, the same shape.
        alpha: Weight of positives; that of negatives is 1 - alpha.
        gamma: Focusing exponent; down-weights well-classified elements.

    Returns:
        The same shape, in float32.

    Source: RetinaNet, arXiv 1708.02002, equation 5.
    """
    logits = torch.where(targets, logits.float(), -logits.float())
    weights = torch.where(targets, alpha, 1 - alpha)
    return -weights * (-logits).sigmoid().pow(gamma) * F.logsigmoid(logits)
