"""Neighborhood attention: every token attends to the square of tokens around it."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops import neighborhood_flex
from mmsparse.ops._backend import is_symbolic, resolve_backend
from mmsparse.ops._tuning import fastest_backend
from mmsparse.ops.attention import biased_attention, merge_heads, split_heads
from mmsparse.ops.regions import crop, merge_by_head, partition_by_head
from mmsparse.ops.triton import is_preferred, require_triton

BACKENDS = ('auto', 'reference', 'tiled', 'triton', 'flex')
TILE_LENGTH = 8  # queries along a side of a tile
TRITON_MAX_HEAD_DIM = 128  # wider heads need more shared memory than some GPUs have


def neighborhood_attention(
    q: Tensor, k: Tensor, v: Tensor, table: Tensor, backend: str = 'auto'
) -> Tensor:
    """Attend from every token to its ``kernel`` x ``kernel`` neighbors.

    At the borders the square of neighbors moves inside the feature map, so that every
    token has as many keys.

    Args:
        q: Queries, (B, H, W, C), H and W at least ``kernel``.
        k: Keys, (B, H, W, C). Dot products with queries are scaled by
            (C / heads)**-0.5.
        v: Values, (B, H, W, C).
        table: Relative position bias by (key minus query) down and across,
            (heads, 2 * kernel - 1, 2 * kernel - 1); ``kernel`` is odd.
        backend: ``reference``; ``tiled``, in which a tile of queries shares a patch of
            keys; ``triton``, a kernel for GPUs that reads this patch where it is;
            ``flex``, torch's FlexAttention; or ``auto``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The kernel is even or larger than the feature map, the heads do not
            divide C, or ``backend`` is unknown or cannot compute it.

    Source: Neighborhood Attention Transformer, arXiv 2204.07143, section 3.1.
    """
    backend = resolve_backend(backend, BACKENDS)
    height, width = q.shape[1:3]
    kernel = (table.shape[-1] + 1) // 2
    if kernel % 2 == 0 or kernel > height or kernel > width:
        raise ValueError(
            'table must be for an odd kernel that is at most the size of the feature '
            f'map, {height}x{width}; got a kernel of {kernel}, from a table of '
            f'{tuple(table.shape)}.'
        )
    if q.shape[-1] % len(table):
        raise ValueError(
            'table must be for a number of heads that divides the channels, '
            f'{q.shape[-1]}; got {len(table)} heads.'
        )
    if backend == 'auto':
        backend = _choose_backend(q, table, kernel)
    if backend == 'reference':
        return _reference(q, k, v, table, kernel)
    if backend == 'tiled':
        return _tiled(q, k, v, table, kernel)
    attend = _triton if backend == 'triton' else neighborhood_flex.attend
    return attend(q, k, v, table)


def _choose_backend(q: Tensor, table: Tensor, kernel: int) -> str:
    """Return the fastest backend as measured or else, on a GPU, as theory has it."""
    head_dim = q.shape[-1] // len(table)
    known = ['tiled']
    on_gpu = is_preferred(q) and head_dim <= TRITON_MAX_HEAD_DIM
    if on_gpu:
        known.append('triton')
        if neighborhood_flex.is_available(q, table):
            known.append('flex')
    measured = fastest_backend(
        'neighborhood_attention',
        q,
        tuple(known),
        tokens=q.shape[1] * q.shape[2],
        kernel=kernel,
        head_dim=head_dim,
    )
    return measured or ('triton' if on_gpu else 'tiled')


def _triton(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
    """Attend by a kernel that reads the patches of keys and values where they are."""
    require_triton(q)
    head_dim = q.shape[-1] // len(table)
    if head_dim > TRITON_MAX_HEAD_DIM:
        raise ValueError(
            f"backend='triton' needs heads of at most {TRITON_MAX_HEAD_DIM} channels; "
            f"got {head_dim}. Use 'auto'."
        )
    from mmsparse.ops.triton import neighborhood as kernels

    return kernels.attend(q, k, v, table)


def _reference(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kernel: int) -> Tensor:
    """Attend to a copy of the neighbors of every token."""
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
    return merge_heads(out).squeeze(3)  # (B, H, W, C)


def _neighbors(length: int, kernel: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the keys of every query of an axis, and their table entries, (L, k)."""
    query = torch.arange(length, device=device)[:, None]
    keys = _first_key(query, length, kernel) + torch.arange(kernel, device=device)
    return keys, keys - query + kernel - 1


def _first_key(
    query: Tensor, length: int, kernel: int, num_keys: int | None = None
) -> Tensor:
    """Return the first key of a query or of a tile that begins with it.

    That is half a kernel before the query, moved inside the axis so that ``num_keys``
    of them fit (``kernel`` if None).
    """
    num_keys = kernel if num_keys is None else num_keys
    return (query - kernel // 2).clamp(0, length - num_keys)


def _tiled(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kernel: int) -> Tensor:
    """Attend from tiles of queries to the patch of keys that a tile needs."""
    (height, width), num_heads = q.shape[1:3], len(table)
    # 1. Cut both axes into tiles of queries and patches of keys.
    down, across = _cut(height, kernel, q.device), _cut(width, kernel, q.device)
    grid = (down.keys.shape[0], across.keys.shape[0])
    size = (grid[0] * down.tile, grid[1] * across.tile)

    # 2. Partition the queries, padded to whole tiles; fold the tiles into the heads.
    q = F.pad(q, (0, 0, 0, size[1] - width, 0, size[0] - height))
    q = partition_by_head(q, grid, num_heads)
    q = q.flatten(1, 2)  # (B, R * heads, queries, D)

    # 3. Copy the patches of keys and values, which overlap, into one feature map.
    rows, columns = down.keys.flatten(), across.keys.flatten()
    k, v = (
        partition_by_head(
            x.index_select(1, rows).index_select(2, columns), grid, num_heads
        ).flatten(1, 2)
        for x in (k, v)
    )  # (B, R * heads, keys, D)

    # 4. Attend under a bias that masks the keys of a patch that are not neighbors.
    bias = _tile_bias(table, down, across)  # (R, heads, queries, keys)
    out = biased_attention(q, k, v, bias.flatten(0, 1))

    # 5. Merge the tiles, and crop the padding.
    out = merge_by_head(out.unflatten(1, (-1, num_heads)), grid, size)
    return crop(out, (height, width))  # (B, H, W, C)


def _tile_bias(table: Tensor, down: '_Cut', across: '_Cut') -> Tensor:
    """Return the bias of all tiles, (R, heads, queries, keys); -inf masks a key."""
    # 1. Look up the bias for every pair of a row type and a column type.
    bias = table[:, _as_rows(down.steps), _as_columns(across.steps)]
    near = _as_rows(down.near) & _as_columns(across.near)
    bias = bias.masked_fill(~near, -torch.inf)  # (heads, types, types, q, q, k, k)
    bias = bias.flatten(5).flatten(3, 4).flatten(1, 2).transpose(0, 1)
    # 2. Copy it to the tiles of that type.
    tile_type = across.steps.shape[0] * down.type[:, None] + across.type
    return bias.index_select(0, tile_type.flatten())


def _as_rows(x: Tensor) -> Tensor:
    """Reshape (types, queries, keys) of the rows to broadcast over the columns."""
    return x[:, None, :, None, :, None]


def _as_columns(x: Tensor) -> Tensor:
    """Reshape (types, queries, keys) of the columns to broadcast over the rows."""
    return x[None, :, None, :, None, :]


class _Cut(NamedTuple):
    """One axis of a feature map, cut into tiles of queries with patches of keys.

    Tiles of one type have the same displacements between their queries and keys, as all
    tiles away from the borders do.
    """

    tile: int  # number of queries of a tile
    keys: Tensor  # indices of the keys of every tile, (tiles, keys)
    type: Tensor  # type of every tile, (tiles,)
    steps: Tensor  # table entry of query and key, (types, queries, keys)
    near: Tensor  # whether query and key are neighbors, (types, queries, keys)


def _cut(length: int, kernel: int, device: torch.device) -> _Cut:
    """Cut an axis into tiles of equal length; the last may reach beyond the end.

    In a graph of any length, tiles have ``TILE_LENGTH`` queries, and every tile is a
    type by itself.
    """
    symbolic = is_symbolic(length)
    # 1. The fewest tiles of at most TILE_LENGTH queries; a tile of n queries has
    # n + kernel - 1 different neighbors. Patches at the borders move inside the axis.
    count = (length + TILE_LENGTH - 1) // TILE_LENGTH
    tile = TILE_LENGTH if symbolic else -(-length // count)
    patch = tile + kernel - 1 if symbolic else min(tile + kernel - 1, length)
    tiles = torch.arange(count, device=device)
    num_keys = kernel if symbolic else patch  # that must fit
    keys = _first_key(tile * tiles, length, kernel, num_keys)
    keys = keys[:, None] + torch.arange(patch, device=device)  # (tiles, keys)

    # 2. Tiles from `begin` until before `end` have patches that did not move: they are
    # of one type. Every other tile is a type by itself. (Without any such tile, `inner`
    # is 1 and gives tile `begin` its own type.)
    if symbolic:
        tile_type = examples = tiles
    else:
        begin = -(-(kernel // 2) // tile)
        end = min((length - patch + kernel // 2) // tile + 1, count)
        inner = max(end - begin, 1)
        tile_type = tiles - (tiles - begin).clamp(0, inner - 1)
        examples = torch.cat([tiles[: begin + 1], tiles[begin + inner :]])  # (types,)

    # 3. Displacements and neighborhoods, on one example of each type.
    query = (tile * examples[:, None] + torch.arange(tile, device=device))[:, :, None]
    key = keys[examples][:, None]
    first = _first_key(query, length, kernel)
    return _Cut(
        tile,
        keys.clamp(max=length - 1),  # beyond the end, keys are no neighbors
        tile_type,
        steps=(key - query + kernel - 1).clamp(0, 2 * kernel - 2),
        near=(key >= first) & (key < first + kernel),
    )
