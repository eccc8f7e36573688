"""Attention of every token to the square of tokens around it (NAT)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops._backend import pick_backend
from mmsparse.ops.attention import biased_attention, merge_heads, split_heads
from mmsparse.ops.regions import merge_regions, partition_regions

BACKENDS = ('auto', 'reference', 'tiles')
TILE = 8  # a patch of keys is then about three times its tile of queries at kernel 7


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, backend: str = 'auto'
) -> Tensor:
    """Let every token attend to its ``kernel`` x ``kernel`` neighbors.

    At the borders the square moves inside, so every token has as many keys.

    Args:
        q: Queries, (B, H, W, C), H and W at least ``kernel``; their products with the
            keys are scaled by the root of the width of a head.
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        table: Added to the logits by (key minus query) down and across,
            (heads, 2 * kernel - 1, 2 * kernel - 1); ``kernel`` is odd.
        backend: How to compute it: ``reference``, ``tiles`` or ``auto``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The kernel is even or larger than the map, the heads do not divide
            C, or ``backend`` is unknown.

    Source: Neighborhood Attention Transformer, arXiv 2204.07143, section 3.1.
    """
    backend = pick_backend(backend, BACKENDS)
    height, width = q.shape[1:3]
    kernel = (table.shape[-1] + 1) // 2
    if kernel % 2 == 0 or kernel > min(height, width):
        raise ValueError(
            f'The kernel must be odd and at most the size of the map, {height}x{width}'
            f'; got {kernel}, from a table of {tuple(table.shape)}.'
        )
    attend = _reference if backend == 'reference' else _tiles
    return attend(q, k, v, table, kernel)


def _reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kernel: int) -> Tensor:
    """Copy every token's neighbors out."""
    num_heads = len(table)
    (rows, steps_y), (columns, steps_x) = (
        _neighbors(length, kernel, q.device) for length in q.shape[1:3]
    )
    k, v = (
        x[:, rows[:, None, :, None], columns[None, :, None, :]].flatten(3, 4)
        for x in (k, v)
    )  # (B, H, W, kernel * kernel, C)
    bias = table[:, steps_y[:, None, :, None], steps_x[None, :, None, :]]
    bias = bias.flatten(3).permute(1, 2, 0, 3).unsqueeze(3)  # (H, W, heads, 1, keys)
    q, k, v = (split_heads(x, num_heads) for x in (q.unsqueeze(3), k, v))
    out = biased_attention(q, k, v, bias, backend='reference')
    return merge_heads(out).squeeze(3)


def _neighbors(length: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Along one axis: every place's keys, and their entries in the table, (L, k)."""
    place = torch.arange(length, device=device)[:, None]
    keys = _first(place, length, kernel) + torch.arange(kernel, device=device)
    return keys, keys - place + kernel - 1


def _first(
    place: Tensor, length: int, kernel: int, extent: int | None = None
) -> Tensor:
    """First key of what begins half a kernel before a place, moved inside the map."""
    extent = kernel if extent is None else extent
    return (place - kernel // 2).clamp(0, length - extent)


def _tiles(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kernel: int) -> Tensor:
    """Let tiles of queries share the patch of keys that all of them need."""
    (height, width), num_heads = q.shape[1:3], len(table)
    down, across = _cut(height, kernel, q.device), _cut(width, kernel, q.device)
    grid = (len(down.keys), len(across.keys))
    padded = (grid[0] * down.tile, grid[1] * across.tile)

    q = F.pad(q, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
    q = partition_regions(q, grid)  # (B, R, queries, C)
    rows, columns = down.keys.flatten(), across.keys.flatten()
    k, v = (
        partition_regions(x.index_select(1, rows).index_select(2, columns), grid)
        for x in (k, v)
    )  # (B, R, keys, C)

    bias = _tile_bias(table, down, across)  # (R, heads, queries, keys)
    q, k, v = (split_heads(x, num_heads).flatten(1, 2) for x in (q, k, v))
    out = biased_attention(q, k, v, bias.flatten(0, 1))
    out = merge_heads(out.unflatten(1, (-1, num_heads)))
    return merge_regions(out, grid, size=padded)[:, :height, :width]


def _tile_bias(table: Tensor, down: '_Cut', across: '_Cut') -> Tensor:
    """The table's entries, and -inf for the keys of a patch that are no neighbors."""
    bias = table[:, _as_rows(down.steps), _as_columns(across.steps)]
    near = _as_rows(down.near) & _as_columns(across.near)
    bias = bias.masked_fill(~near, -torch.inf)  # (heads, kinds, kinds, q, q, k, k)
    bias = bias.flatten(5).flatten(3, 4).flatten(1, 2).transpose(0, 1)
    kind = len(across.steps) * down.kind[:, None] + across.kind
    return bias.index_select(0, kind.flatten())


def _as_rows(x: Tensor) -> Tensor:
    """(kinds, queries, keys) down, ready to meet those across."""
    return x[:, None, :, None, :, None]


def _as_columns(x: Tensor) -> Tensor:
    """(kinds, queries, keys) across, ready to meet those down."""
    return x[None, :, None, :, None, :]


class _Cut(NamedTuple):
    """One axis, cut into tiles of queries with patches of keys.

    Tiles that lie alike in their patches, as all do away from the borders, are of one
    kind.
    """

    tile: int  # number of queries
    keys: Tensor  # of every tile, (tiles, keys)
    kind: Tensor  # of every tile, (tiles,)
    steps: Tensor  # entries in the table, (kinds, queries, keys)
    near: Tensor  # whether query and key are neighbors, (kinds, queries, keys)


def _cut(length: int, kernel: int, device: torch.device) -> _Cut:
    """Cut an axis into tiles of equal length; the last may reach beyond the end."""
    count = -(-length // TILE)
    tile = -(-length // count)
    patch = min(tile + kernel - 1, length)
    tiles = torch.arange(count, device=device)
    keys = _first(tile * tiles, length, kernel, extent=patch)[:, None]
    keys = keys + torch.arange(patch, device=device)

    # The first tile, and the one behind the last, whose patch need not move inside.
    begin = -(-(kernel // 2) // tile)
    end = min((length - patch + kernel // 2) // tile + 1, count)
    alike = max(end - begin, 1)
    kind = tiles - (tiles - begin).clamp(0, alike - 1)
    shown = torch.cat([tiles[: begin + 1], tiles[begin + alike :]])

    query = (tile * shown[:, None] + torch.arange(tile, device=device))[:, :, None]
    key = keys[shown][:, None]
    first = _first(query, length, kernel)
    return _Cut(
        tile,
        keys,
        kind,
        steps=(key - query + kernel - 1).clamp(0, 2 * kernel - 2),
        near=(key >= first) & (key < first + kernel),
    )
