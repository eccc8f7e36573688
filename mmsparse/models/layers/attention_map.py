"""Where the queries of an attention layer look; for pictures and numbers, not speed."""

from typing import NamedTuple

import torch
from torch import Tensor

from mmsparse.ops.attention import attention_logits, split_heads

POINT = (0, 0)


class AttentionMap(NamedTuple):
    """What some queries of a map attend to, by heads that share their keys.

    Coordinates are (y, x) in cells of the map: the first cell has its center at 0.5.

    Args:
        name: What tells these heads from the others of the layer; empty for all heads.
        weights: Attention of n queries to M keys each, (B, heads, n, M); sums to 1.
        rows: Which of the T keys these are, (B, n, M).
        keys: Centers of all keys that there are, (B, T, 2).
        extent: Height and width of what a key stands for, in cells; :data:`POINT` if
            it is read between the cells.
    """

    name: str
    weights: Tensor
    rows: Tensor
    keys: Tensor
    extent: tuple[float, float] = (1, 1)

    def places(self) -> Tensor:
        """Locate the keys of every query, (B, n, M, 2)."""
        batch = torch.arange(len(self.rows), device=self.rows.device)
        return self.keys[batch[:, None, None], self.rows]


def attend_shared_keys(
    q: Tensor, k: Tensor, scale: float, num_heads: int, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weigh keys that all queries share.

    Args:
        q: (B, n, C).
        k: (B, M, C).
        scale: Factor on the products.
        num_heads: Number of heads; divides C.
        bias: Added to the logits, broadcasts to (B, heads, n, M).

    Returns:
        ``weights`` and ``rows`` of a :class:`AttentionMap`.
    """
    logits = attention_logits(
        split_heads(q, num_heads), split_heads(k, num_heads), scale
    )
    if bias is not None:
        logits = logits + bias
    rows = torch.arange(k.shape[1], device=k.device)
    return logits.softmax(-1), rows.expand(len(k), q.shape[1], -1)


def attend_own_keys(
    q: Tensor, k: Tensor, scale: float, num_heads: int, bias: Tensor | None = None
) -> Tensor:
    """Weigh keys that every query has for itself.

    Args:
        q: (B, n, C).
        k: (B, n, M, C).
        scale: Factor on the products.
        num_heads: Number of heads; divides C.
        bias: Added to the logits, broadcasts to (B, heads, n, M).

    Returns:
        ``weights`` of a :class:`AttentionMap`.
    """
    q = split_heads(q.unsqueeze(2), num_heads)  # (B, n, heads, 1, D)
    logits = attention_logits(q, split_heads(k, num_heads), scale)
    logits = logits.squeeze(3).transpose(1, 2)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1)


def grid_centers(
    size: tuple[int, int], like: Tensor, extent: tuple[float, float] = (1, 1)
) -> Tensor:
    """Centers of the cells of a grid.

    Args:
        size: Cells down and across.
        like: Gives the device.
        extent: Height and width of a cell.

    Returns:
        (y, x), row by row, (rows * columns, 2).
    """
    axes = [
        step * (torch.arange(count, device=like.device) + 0.5)
        for count, step in zip(size, extent, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1).flatten(0, 1)
