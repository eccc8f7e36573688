"""Neighborhood attention: every token attends to the square of tokens around it."""

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops import neighborhood_flex
from mmsparse.ops._backend import is_symbolic, is_tracing, resolve_backend
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._tuning import fastest_backend
from mmsparse.ops.attention import biased_attention, merge_heads, split_heads
from mmsparse.ops.dilation import dilated
from mmsparse.ops.regions import crop, merge_by_head, partition_by_head
from mmsparse.ops.triton import is_preferred, require_triton

BACKENDS = ('auto', 'reference', 'tiled', 'triton', 'flex')
TILE_LENGTH = 8  # queries along a side of a tile
TRITON_MAX_HEAD_DIM = 128  # wider heads need more shared memory than some GPUs have


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor,
    backend: str = 'auto',
    dilation: int = 1,
) -> Tensor:
    """Attend from every token to its ``kernel`` x ``kernel`` neighbors.

    At the borders the square of neighbors moves inside the feature map, so that every
    token has as many keys.

    Args:
        q: Queries, (B, H, W, C), H and W at least ``kernel`` times ``dilation``.
        k: Keys, (B, H, W, C). Dot products with queries are scaled by
            (C / heads)**-0.5.
        v: Values, (B, H, W, C).
        table: Relative position bias by (key minus query) down and across,
            (heads, 2 * kernel - 1, 2 * kernel - 1); ``kernel`` is odd.
        backend: ``reference``; ``tiled``, in which a tile of queries shares a patch of
            keys; ``triton``, a kernel for GPUs that reads this patch where it is;
            ``flex``, torch's FlexAttention; or ``auto``.
        dilation: Distance of neighbors: they are the nearest tokens among every
            ``dilation``-th row and column, counted from the query.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The kernel is even, it is larger than the feature map with its
            dilation, the heads do not divide C, or ``backend`` is unknown or cannot
            compute it.

    Source: Neighborhood Attention Transformer, arXiv 2204.07143, section 3.1; with a
    dilation, arXiv 2209.15001, section 3.1.
    """
    backend = resolve_backend(backend, BACKENDS)
    kernel = (table.shape[-1] + 1) // 2
    _check(q, table, kernel, dilation)
    if dilation > 1:
        undilated = partial(neighborhood_attention, table=table, backend=backend)
        phases = 'reference' if backend == 'reference' else 'auto'
        return dilated(undilated, (q, k, v), dilation, phases)
    if backend == 'auto':
        backend = _choose_backend(q, table, kernel)
    if backend == 'reference':
        return _reference(q, k, v, table, kernel)
    if backend == 'tiled':
        return _tiled(q, k, v, table, kernel)
    attend = _triton if backend == 'triton' else neighborhood_flex.attend
    return attend(q, k, v, table)


def _check(q: Tensor, table: Tensor, kernel: int, dilation: int) -> None:
    height, width = q.shape[1:3]
    if dilation < 1:
        raise ValueError(f'dilation must be at least 1; got {dilation}.')
    if kernel % 2 == 0 or kernel > height or kernel > width:
        raise ValueError(
            'table must be for an odd kernel that is at most the size of the feature '
            f'map, {height}x{width}; got a kernel of {kernel}, from a table of '
            f'{tuple(table.shape)}.'
        )
    if kernel * dilation > height or kernel * dilation > width:
        raise ValueError(
            f'dilation must be at most the feature map, {height}x{width}, over the '
            f'kernel, {kernel}; got {dilation}.'
        )
    if q.shape[-1] % len(table):
        raise ValueError(
            'table must be for a number of heads that divides the channels, '
            f'{q.shape[-1]}; got {len(table)} heads.'
        )


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


def _first_key(query: Tensor, length: int, kernel: int) -> Tensor:
    """Return the first key of a query: half a kernel before it, moved inside."""
    return (query - kernel // 2).clamp(0, length - kernel)


def _tiled(q: Tensor, k: Tensor, v: Tensor, table: Tensor, kernel: int) -> Tensor:
    """Attend from tiles of queries to the patch of keys that a tile needs."""
    (height, width), num_heads = q.shape[1:3], len(table)
    # 1. Cut both axes into tiles of queries and patches of keys.
    down, across = _cut(height, kernel), _cut(width, kernel)
    grid = (down.num_tiles, across.num_tiles)
    size = (down.num_tiles * down.tile, across.num_tiles * across.tile)

    # 2. Partition the queries, padded to whole tiles; fold the tiles into the heads.
    q = F.pad(q, (0, 0, *_padding(across), *_padding(down)))
    q = partition_by_head(q, grid, num_heads)
    q = q.flatten(1, 2)  # (B, R * heads, queries, D)

    # 3. Copy the patches of keys and values, which overlap.
    patches = _plain_patches if is_tracing() else _Patches.apply
    k, v = (patches(x, down, across, num_heads) for x in (k, v))

    # 4. Attend under a bias that masks the keys of a patch that are not neighbors.
    bias = _tile_bias(table, down, across)  # (R, heads, queries, keys)
    out = biased_attention(q, k, v, bias.flatten(0, 1))

    # 5. Merge the tiles, and crop the padding.
    out = merge_by_head(out.unflatten(1, (-1, num_heads)), grid, size)
    out = out[:, down.overhang :, across.overhang :]
    return crop(out, (height, width))  # (B, H, W, C)


class _Cut(NamedTuple):
    """One axis of a feature map, cut into tiles of queries with patches of keys.

    The first and the last tile may reach beyond the feature map, and patches do. They
    have all neighbors nevertheless, also those that are moved inside.
    """

    length: int  # of the axis
    kernel: int
    tile: int  # number of queries of a tile
    num_tiles: int
    overhang: int  # of the first tile
    margin: int  # keys of a patch before its tile, and behind it


# Functions, since torch 2.6 does not compile properties of named tuples.
def _patch(cut: _Cut) -> int:
    """Return the number of keys of a patch."""
    return cut.tile + 2 * cut.margin


def _padding(cut: _Cut) -> tuple[int, int]:
    """Return the numbers of tokens of the tiles before and behind the axis."""
    return cut.overhang, cut.num_tiles * cut.tile - cut.overhang - cut.length


def _cut(length: int, kernel: int) -> _Cut:
    """Cut an axis into the fewest tiles of equal length."""
    count = (length + TILE_LENGTH - 1) // TILE_LENGTH
    if is_symbolic(length):
        return _Cut(length, kernel, TILE_LENGTH, count, 0, kernel // 2)
    if count == 1:
        return _Cut(length, kernel, length, 1, 0, 0)
    # Both ends overhang as much, so that about half of a tile at least is inside. Its
    # queries may need the `kernel` last tokens, or the first ones.
    tile = -(-length // count)
    beyond = count * tile - length
    overhang = beyond // 2  # of the first tile, at most that of the last one
    margin = max(kernel // 2, kernel - (tile - (beyond - overhang)))
    return _Cut(length, kernel, tile, count, overhang, margin)


def _pad(x: Tensor, down: _Cut, across: _Cut) -> Tensor:
    """Pad a feature map, (B, H, W, C), by what the patches need."""
    left, right, top, bottom = (
        length + cut.margin for cut in (across, down) for length in _padding(cut)
    )
    return F.pad(x, (0, 0, left, right, top, bottom))


def _plain_patches(x: Tensor, down: _Cut, across: _Cut, num_heads: int) -> Tensor:
    """Copy the patches of (B, H, W, C), to (B, R * heads, keys, D)."""
    rows, columns = (
        _patch_keys(cut, torch.arange(cut.num_tiles, device=x.device)).clamp(
            0, cut.length - 1
        )
        for cut in (down, across)
    )  # (tiles, keys); those beyond the feature map are masked
    x = x.index_select(1, rows.flatten()).index_select(2, columns.flatten())
    return partition_by_head(x, (down.num_tiles, across.num_tiles), num_heads).flatten(
        1, 2
    )


class _Patches(torch.autograd.Function):
    """The same in one copy, without indices, as is its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: _Cut, across: _Cut, num_heads: int
    ) -> Tensor:
        ctx.args = down, across, num_heads
        x = _pad(x, down, across)
        x = x.unfold(1, _patch(down), down.tile).unfold(2, _patch(across), across.tile)
        x = x.unflatten(3, (num_heads, -1))  # (B, rows, columns, heads, D, h, w)
        x = x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)
        return x.flatten(1, 3)  # (B, R * heads, keys, D)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        down, across, num_heads = ctx.args
        patches = grad.unflatten(2, (_patch(down), _patch(across)))
        patches = patches.unflatten(1, (down.num_tiles, across.num_tiles, num_heads))
        patches = patches.permute(0, 1, 4, 2, 5, 3, 6)
        # 1. Blocks of the length of a tile, on which the patches are (rows, h, columns,
        # w, heads, D). Block i of a patch is block i of the following ones, too.
        blocks_y, blocks_x = (-(-_patch(cut) // cut.tile) for cut in (down, across))
        total = grad.new_zeros(
            len(grad),
            down.num_tiles + blocks_y - 1,
            down.tile,
            across.num_tiles + blocks_x - 1,
            across.tile,
            num_heads,
            grad.shape[-1],
        )
        # 2. Add up the patches, the same block of all of them at a time.
        for i in range(blocks_y):
            for j in range(blocks_x):
                block = patches[
                    :,
                    :,
                    i * down.tile : (i + 1) * down.tile,
                    :,
                    j * across.tile : (j + 1) * across.tile,
                ]
                total[
                    :,
                    i : i + down.num_tiles,
                    : block.shape[2],
                    j : j + across.num_tiles,
                    : block.shape[4],
                ] += block
        # 3. Crop the padding.
        total = total.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        top, left = down.overhang + down.margin, across.overhang + across.margin
        total = total[:, top : top + down.length, left : left + across.length]
        return total, None, None, None


def _tile_bias(table: Tensor, down: _Cut, across: _Cut) -> Tensor:
    """Return the bias of all tiles, (R, heads, queries, keys); -inf masks a key."""
    entries, near, tile_type = _pairs(down, across, table.device)
    # 1. Look up the bias of a tile, the same in all of them but for the mask.
    bias = table.flatten(1).index_select(1, entries.flatten())
    bias = bias.unflatten(1, entries.shape).transpose(0, 1)  # (1, heads, ...)
    # 2. Mask it for every type of tile, and copy it to the tiles of that type.
    bias = bias.masked_fill(~near[:, None], -torch.inf)  # (types, heads, ...)
    return bias.index_select(0, tile_type)


@cached_by_size
def _pairs(
    down: _Cut, across: _Cut, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what pairs of the queries and the keys of a tile are.

    Args:
        down: Cut of the rows.
        across: Cut of the columns.
        device: Device of the results.

    Returns:
        Entry of every pair in the table of a head, (1, queries, keys), any one if they
        are no neighbors; for every type of tile, whether they are, (types, queries,
        keys); type of every tile, (R,). In a graph of any size, entries have types.
    """
    (steps_y, near_y, types_y), (steps_x, near_x, types_x) = (
        _axis_pairs(cut, device) for cut in (down, across)
    )
    if not is_symbolic(down.length, across.length):
        steps_y, steps_x = steps_y[:1], steps_x[:1]  # the same in all tiles
    span = 2 * down.kernel - 1
    entries = span * _as_rows(steps_y) + _as_columns(steps_x)
    near = _as_rows(near_y) & _as_columns(near_x)
    entries, near = (x.flatten(4).flatten(2, 3).flatten(0, 1) for x in (entries, near))
    types = near_x.shape[0] * types_y[:, None] + types_x
    return entries, near, types.flatten()


def _as_rows(x: Tensor) -> Tensor:
    """Reshape (types, queries, keys) of the rows to broadcast over the columns."""
    return x[:, None, :, None, :, None]


def _as_columns(x: Tensor) -> Tensor:
    """Reshape (types, queries, keys) of the columns to broadcast over the rows."""
    return x[None, :, None, :, None, :]


def _axis_pairs(cut: _Cut, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return table entries and neighbors by type, and types of the tiles of an axis.

    In a graph of any length, every tile is a type by itself.
    """
    length, kernel, tile = cut.length, cut.kernel, cut.tile
    # 1. Tiles from `begin` until before `end` have no neighbors that are moved: they
    # are of one type. Every other tile is a type by itself. (Without any such tile,
    # `inner` is 1 and gives tile `begin` its own type.)
    tiles = torch.arange(cut.num_tiles, device=device)
    if is_symbolic(length):
        types = examples = tiles
    else:
        begin = -(-(cut.overhang + kernel // 2) // tile)
        end = min((cut.overhang + length - kernel // 2) // tile, cut.num_tiles)
        inner = max(end - begin, 1)
        types = tiles - (tiles - begin).clamp(0, inner - 1)
        examples = torch.cat([tiles[: begin + 1], tiles[begin + inner :]])
    # 2. Displacements and neighbors of one example of each type.
    query = tile * examples[:, None] - cut.overhang + torch.arange(tile, device=device)
    key, query = _patch_keys(cut, examples)[:, None], query[:, :, None]
    first = _first_key(query, length, kernel)
    steps = (key - query + kernel - 1).clamp(0, 2 * kernel - 2)
    return steps, (key >= first) & (key < first + kernel), types


def _patch_keys(cut: _Cut, tiles: Tensor) -> Tensor:
    """Return the keys of tiles, (n, keys), also those beyond the feature map.

    In a graph of any length, where both ends cannot overhang as much, patches are moved
    inside instead.
    """
    key = torch.arange(_patch(cut), device=tiles.device)
    start = cut.tile * tiles[:, None]
    if is_symbolic(cut.length):
        return _first_key(start, cut.length, cut.kernel) + key
    return start - cut.overhang - cut.margin + key
