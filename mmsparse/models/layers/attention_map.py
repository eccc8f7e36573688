"""Attention maps of the attention layers: which keys queries attend to, and how much.

For visualization and analysis, not for speed.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mmsparse.ops.attention import attention_logits, split_heads
from mmsparse.ops.pyramid import axes_to_points, cell_centers

POINT = (0, 0)


class AttentionMap(NamedTuple):
    """Attention of some queries of a feature map, for heads that share their keys.

    Coordinates are (y, x) in cells of the feature map: the first cell has its center at
    0.5.

    Args:
        name: Name of these heads within the layer; empty for all heads.
        weights: Attention of n queries to M keys each, (B, heads, n, M); sums to 1.
        index: Indices of these keys among all T keys, (B, n, M).
        keys: Centers of all keys, (B, T, 2).
        extent: Height and width of the cells that a key summarizes; :data:`POINT` if it
            is sampled between cells.
    """

    name: str
    weights: Tensor
    index: Tensor
    keys: Tensor
    extent: tuple[float, float] = (1, 1)

    def locations(self) -> Tensor:
        """Return the centers of the keys of every query, (B, n, M, 2)."""
        batch = torch.arange(len(self.index), device=self.index.device)
        return self.keys[batch[:, None, None], self.index]


def shared_key_weights(
    q: Tensor, k: Tensor, num_heads: int, scale: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the attention of queries to keys that they share.

    Args:
        q: Queries, (B, n, C).
        k: Keys, (B, M, C).
        num_heads: Number of heads; divides C.
        scale: Factor on the dot products.
        bias: Added to the logits, broadcasts to (B, heads, n, M).

    Returns:
        ``weights`` and ``index`` of an :class:`AttentionMap`.
    """
    logits = attention_logits(
        split_heads(q, num_heads), split_heads(k, num_heads), scale
    )
    if bias is not None:
        logits = logits + bias
    index = torch.arange(k.shape[1], device=k.device)
    return logits.softmax(-1), index.expand(len(k), q.shape[1], -1)


def own_key_weights(
    q: Tensor, k: Tensor, num_heads: int, scale: float, bias: Tensor | None = None
) -> Tensor:
    """Compute the attention of queries to separate keys of each query.

    Args:
        q: Queries, (B, n, C).
        k: Keys of each query, (B, n, M, C).
        num_heads: Number of heads; divides C.
        scale: Factor on the dot products.
        bias: Added to the logits, broadcasts to (B, heads, n, M).

    Returns:
        ``weights`` of an :class:`AttentionMap`.
    """
    q = split_heads(q.unsqueeze(2), num_heads)  # (B, n, heads, 1, D)
    logits = attention_logits(q, split_heads(k, num_heads), scale)
    logits = logits.squeeze(3).transpose(1, 2)  # (B, heads, n, M)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(-1)


def stripe_map(
    name: str,
    q: Tensor,
    k: Tensor,
    num_heads: int,
    stripe: tuple[int, int],
    queries: Tensor,
) -> AttentionMap:
    """Compute the attention of some queries to the keys of their stripe.

    Args:
        name: Name of these heads within the layer.
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C).
        num_heads: Number of heads; divides C.
        stripe: Height and width of the stripes.
        queries: Row-major indices into H * W, (n,).

    Returns:
        The attention map; places of a stripe beyond the feature map have no weight, and
        the index of a key on it.
    """
    size = q.shape[1:3]
    query_axes = queries // size[1], queries % size[1]
    # 1. Along each axis, the keys of every query, and which of them are beyond the
    # feature map, (n, side of the stripe).
    keys, beyond = [], []
    for query, length, side in zip(query_axes, size, stripe, strict=True):
        first = (query - query % side)[:, None]
        axis_keys = first + torch.arange(min(side, length), device=q.device)
        beyond.append(axis_keys >= length)
        keys.append(axis_keys.clamp(max=length - 1))
    # 2. Both axes combined, (n, M).
    index = (keys[0][:, :, None] * size[1] + keys[1][:, None]).flatten(1)
    masked = (beyond[0][:, :, None] | beyond[1][:, None]).flatten(1)
    bias = torch.zeros_like(masked, dtype=q.dtype).masked_fill(masked, -torch.inf)
    # 3. Attention to these keys.
    weights = own_key_weights(
        q[:, query_axes[0], query_axes[1]],
        k.flatten(1, 2)[:, index],
        num_heads,
        (q.shape[-1] // num_heads) ** -0.5,
        bias,
    )
    centers = key_centers(size, q).expand(len(q), -1, -1)
    return AttentionMap(name, weights, index.expand(len(q), -1, -1), centers)


def key_centers(
    size: tuple[int, int], like: Tensor, extent: tuple[float, float] = (1, 1)
) -> Tensor:
    """Compute the centers of a grid of keys.

    Args:
        size: Number of keys down and across.
        like: Tensor of the same device.
        extent: Height and width of the cells that a key summarizes.

    Returns:
        (y, x) in cells of the feature map, row-major, (rows * columns, 2).
    """
    rows, columns = (
        step * cell_centers(count, like)
        for count, step in zip(size, extent, strict=True)
    )
    return axes_to_points(rows, columns).flatten(0, 1)
