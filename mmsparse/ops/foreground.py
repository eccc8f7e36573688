"""Which cells of a map show objects, and the loss of a score that should tell."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cells_by_reach(
    boxes: Tensor, size: tuple[int, int], stride: int, low: float, high: float
) -> Tensor:
    """Mark cells inside a box, none of whose sides is too far, nor all too near.

    Args:
        boxes: (x1, y1, x2, y2) in pixels, (B, M, 4); negative ones hold no cell.
        size: Height and width of the map.
        stride: Pixels from one cell to the next.
        low: The farthest side of the box is farther from the center of the cell, in
            pixels.
        high: No side of it is farther than that.

    Returns:
        True for the marked cells, row-major, (B, H * W).

    Source: FCOS, arXiv 1904.01355, section 3.2, as Focus-DETR was released.
    """
    inside_y, reach_y = _from_sides(boxes[..., 1::2], size[0], stride)
    inside_x, reach_x = _from_sides(boxes[..., 0::2], size[1], stride)
    near_y, near_x = inside_y & (reach_y <= high), inside_x & (reach_x <= high)
    far_y, far_x = near_y & (reach_y > low), near_x & (reach_x > low)
    return _any_box(far_y, near_x) | _any_box(near_y, far_x)


def cells_by_size(
    boxes: Tensor, size: tuple[int, int], stride: int, low: float, high: float
) -> Tensor:
    """Mark cells inside a box of a fitting size.

    Args:
        boxes: (x1, y1, x2, y2) in pixels, (B, M, 4); negative ones hold no cell.
        size: Height and width of the map.
        stride: Pixels from one cell to the next.
        low: The least half of the longer side of a box, in pixels.
        high: The greatest.

    Returns:
        True for the marked cells, row-major, (B, H * W).

    Source: Focus-DETR, arXiv 2307.12612, section 3.
    """
    half = (boxes[..., 2:] - boxes[..., :2]).amax(-1, keepdim=True) / 2
    inside_y, _ = _from_sides(boxes[..., 1::2], size[0], stride)
    inside_x, _ = _from_sides(boxes[..., 0::2], size[1], stride)
    return _any_box(inside_y & (half >= low) & (half <= high), inside_x)


def _from_sides(sides: Tensor, cells: int, stride: int) -> tuple[Tensor, Tensor]:
    """Along one axis: is a cell between the sides, (B, M, cells), and the farther."""
    centers = torch.arange(cells, device=sides.device) * stride + stride // 2
    before, after = centers - sides[..., :1], sides[..., 1:] - centers
    return torch.minimum(before, after) > 0, torch.maximum(before, after)


def _any_box(rows: Tensor, columns: Tensor) -> Tensor:
    """Is there a box with both, (B, M, H) and (B, M, W)? A product counts them."""
    counts = rows.transpose(1, 2).float() @ columns.float()  # (B, H, W)
    return counts.flatten(1) > 0


def binary_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Compute the focal loss of every element, stable for logits of any size.

    Args:
        logits: Any shape.
        targets: True for what is positive, the same shape.
        alpha: Weight of positives; negatives have the rest to 1.
        gamma: Exponent that takes weight from what is told rightly.

    Returns:
        The same shape, in float32.

    Source: RetinaNet, arXiv 1708.02002, equation 5.
    """
    logits = torch.where(targets, logits.float(), -logits.float())
    weights = torch.where(targets, alpha, 1 - alpha)
    return -weights * (-logits).sigmoid().pow(gamma) * F.logsigmoid(logits)
