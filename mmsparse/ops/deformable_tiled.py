"""Deformable attention in tiles of queries, without the coordinates of pairs.

To interpolate the bias table bilinearly is to interpolate it along its columns and then
along its rows. The first is a matrix product with hat functions. In the second, all
queries of one row of the feature map weight the same two rows of the table, key by key:
a sum of rows as in ``F.embedding_bag``. So no coordinates of pairs of query and key are
computed, and nothing is gathered entry by entry. The backward pass computes logits and
weights again. Logits are laid out as (keys, queries), the layout of the bias.
"""

from collections.abc import Iterator
from functools import cached_property
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmsparse.ops._devices import settings_for
from mmsparse.ops._precision import no_autocast, precise_dtype

COLUMN_MULTIPLE = 16  # of the columns of a tile: a cache line of float32 is gathered


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    """Compute :func:`mmsparse.ops.deformable_attention` with few logits at a time.

    There is no double backward. Computed in the dtype of the locations, float32 at
    least.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, Hk, Wk, C).
        v: Values, (B, Hk, Wk, C).
        locations: Sampling locations of the keys, (B, groups, Hk, Wk, 2).
        table: Bias by displacement, (heads, Ty, Tx).
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,),
            evenly spaced, ascending; without gradient.

    Returns:
        (B, H, W, C).
    """
    dtype = precise_dtype(locations)
    heads = (x.to(dtype).unflatten(-1, (len(table), -1)) for x in (q, k, v))
    queries, keys, values = heads  # (B, h, w, heads, D)
    out = _TiledAttention.apply(
        queries * queries.shape[-1] ** -0.5,
        keys.flatten(1, 2),
        values.flatten(1, 2),
        locations.to(dtype).flatten(2, 3),
        table.to(dtype),
        *(axis.to(dtype) for axis in axes),
    )
    return out.flatten(3).to(q.dtype)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        locations: Tensor,
        table: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        out, log_sums = torch.empty_like(q), torch.empty_like(q[..., :1])
        with no_autocast(q):
            for b, h, tile, lookup in _tiles(locations, table, rows, columns):
                # 1. Queries of the tile, all rows of some columns, and keys, of a head.
                index = b, slice(None), tile, h
                queries, keys = q[index].flatten(0, 1), k[b, :, h]  # (H * w, D), (M, D)
                # 2. Logits, added to the bias in place.
                logits = lookup.bias(table[h])[0].addmm_(
                    keys, queries.t()
                )  # (M, H * w)
                # 3. Softmax over the keys, not yet divided by its sum.
                top = logits.amax(dim=0)
                weights = logits.sub_(top).exp_()
                total = weights.sum(dim=0)
                # 4. Weighted mean of the values; log-sum-exp for the backward pass.
                values = weights.t() @ v[b, :, h] / total[:, None]
                out[index] = values.view_as(out[index])
                log_sums[index] = (top + total.log()).view_as(log_sums[index])
        ctx.save_for_backward(q, k, v, locations, table, rows, columns, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, locations, table, rows, columns, out, log_sums = ctx.saved_tensors
        dq, dk, dv, dlocations, dtable = (
            torch.empty_like(q),
            *(torch.zeros_like(x) for x in (k, v, locations, table)),
        )
        # 1. Mean of dweights over the keys, weighted by the weights, which the gradient
        # of the softmax subtracts.
        means = (grad * out).sum(dim=-1, keepdim=True)
        groups = _group_of_heads(locations, table)
        with no_autocast(grad):
            for b, h, tile, lookup in _tiles(locations, table, rows, columns):
                index = b, slice(None), tile, h
                queries, keys, values = q[index].flatten(0, 1), k[b, :, h], v[b, :, h]
                tile_grad = grad[index].flatten(0, 1)  # (H * w, D)
                # 2. The weights again, now from the log-sum-exp.
                bias, across = lookup.bias(table[h])
                logits = bias.addmm_(keys, queries.t())  # (M, H * w)
                weights = logits.sub_(log_sums[index].flatten()).exp_()
                # 3. Gradients of values, and through the softmax of the logits.
                dv[b, :, h] += weights @ tile_grad
                dweights = values @ tile_grad.t()
                dlogits = dweights.sub_(means[index].flatten()).mul_(weights)
                # 4. Gradients of queries and keys.
                dq[index] = (dlogits.t() @ keys).view_as(dq[index])
                dk[b, :, h] += dlogits @ queries
                # 5. Gradients of the bias: of the table and of the locations.
                dhead_table, dpoints = lookup.backward(table[h], across, dlogits)
                dtable[h] += dhead_table
                dlocations[b, groups[h]] += dpoints
        return dq, dk, dv, dlocations, dtable, None, None


def _group_of_heads(locations: Tensor, table: Tensor) -> list[int]:
    """Return the group of every head."""
    heads_per_group = len(table) // locations.shape[1]
    return [head // heads_per_group for head in range(len(table))]


def _tiles(
    locations: Tensor, table: Tensor, rows: Tensor, columns: Tensor
) -> Iterator[tuple[int, int, slice, '_BiasLookup']]:
    """Iterate over images, groups, tiles of columns and heads.

    Yields:
        Image, head, columns of the tile, and the lookup of its bias, which the heads of
        a group share.
    """
    batch, num_groups, num_keys, _ = locations.shape
    heads_per_group = len(table) // num_groups
    width = settings_for(table).tile_logits // (num_keys * len(rows))
    width = max(width // COLUMN_MULTIPLE, 1) * COLUMN_MULTIPLE
    for b in range(batch):
        for group in range(num_groups):
            keys_y, keys_x = locations[b, group].unbind(-1)  # (M,)
            entries_y = _table_index(rows, keys_y, table.shape[1])
            bags = _Bags(entries_y, table.shape[1])
            for left in range(0, len(columns), width):
                tile = slice(left, left + width)
                entries_x = _table_index(columns[tile], keys_x, table.shape[2])
                lookup = _BiasLookup(bags, entries_x, table.shape[2])
                first = group * heads_per_group
                for head in range(first, first + heads_per_group):
                    yield b, head, tile, lookup


def _table_index(queries: Tensor, keys: Tensor, entries: int) -> Tensor:
    """Return the fractional index into an axis of the table, (M, n)."""
    return (queries - keys[:, None] + 2) * ((entries - 1) / 4)


def _hat(distance: Tensor) -> Tensor:
    """Return the weight of an entry at a distance from the fractional index."""
    return (1 - distance.abs()).relu()


def _hat_slope(distance: Tensor) -> Tensor:
    """Return the derivative of :func:`_hat` by the index, to the right at its kinks."""
    return (2 * distance.ceil() - 1) * ((distance > -1) & (distance <= 1))


class _BiasLookup:
    """Interpolation of a table for all keys and a tile of queries.

    Args:
        bags: Interpolation along the rows of the table.
        entries_x: Fractional indices along its columns, (M, w).
        num_columns: Number of columns of the table, Tx.
    """

    def __init__(self, bags: '_Bags', entries_x: Tensor, num_columns: int) -> None:
        entry = torch.arange(
            num_columns, dtype=entries_x.dtype, device=entries_x.device
        )
        self.bags = bags
        self.distance = (entry[:, None, None] - entries_x).flatten(1)  # (Tx, M * w)
        self.hats = _hat(self.distance)
        self.size = entries_x.shape

    @cached_property
    def slopes(self) -> Tensor:
        """Derivatives of the hats by the index, (Tx, M * w)."""
        return _hat_slope(self.distance)

    def bias(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate the table of a head.

        Args:
            table: (Ty, Tx).

        Returns:
            The bias, (M, H * w), and the table interpolated along its columns only,
            (Ty * M, w), which the backward pass needs.
        """
        across = (table @ self.hats).view(-1, self.size[1])  # (Ty * M, w)
        bias = self.bags.sum_entries(across)  # (M * H, w)
        return bias.view(self.size[0], -1), across

    def backward(
        self, table: Tensor, across: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the table and of the sampling locations.

        Args:
            table: (Ty, Tx).
            across: The table interpolated along its columns, (Ty * M, w).
            grad: Gradient of the bias, (M, H * w).

        Returns:
            (Ty, Tx) and (M, 2).
        """
        num_keys, width = self.size
        # 1. Back through the interpolation along the rows: sums over the queries, by
        # the weights of the entries and by their slopes, both (Ty * M, w).
        dacross, dslopes = self.bags.sum_queries(grad.view(-1, width))
        # 2. The slopes give the derivative by the row index of every key, (M,).
        dindex_y = (across * dslopes).view(-1, num_keys, width).sum((0, 2))
        # 3. Back through the matrix product: the slopes of the hats give the derivative
        # by the column index, (M,).
        dacross = dacross.view(len(table), -1)  # (Ty, M * w)
        dhats = (table.t() @ dacross).mul_(self.slopes)  # (Tx, M * w)
        dindex_x = dhats.view(-1, num_keys, width).sum((0, 2))
        # 4. From indices to locations, which have the opposite sign (_table_index).
        size = table.new_tensor(table.shape)
        dpoints = torch.stack([dindex_y, dindex_x], dim=-1) * ((1 - size) / 4)
        return dacross @ self.hats.t(), dpoints


class _Bags:
    """Interpolation along the rows of a table, as bags of embeddings, and its reverse.

    Args:
        entries_y: Fractional indices of the rows of queries, (M, H), evenly spaced and
            ascending along each row.
        num_rows: Number of rows of the table, Ty.
    """

    def __init__(self, entries_y: Tensor, num_rows: int) -> None:
        self.entries_y = entries_y
        self.num_rows = num_rows
        # 1. A row of queries reads two entries, below and above its fractional index.
        low = entries_y.floor().nan_to_num().clamp(-1, num_rows)
        entry = low[..., None] + low.new_tensor([0, 1])  # (M, H, 2)
        # 2. Entries outside the table weigh nothing.
        weights = _hat(entry - entries_y[..., None])
        weights = weights * ((entry >= 0) & (entry < num_rows))
        # 3. Entry y of key m is row y * M + m of the summed tensor.
        num_keys = len(entries_y)
        key = torch.arange(num_keys, device=entries_y.device)[:, None, None]
        index = entry.clamp(0, num_rows - 1).long() * num_keys + key
        self.index = index.flatten(0, 1)  # (M * H, 2)
        self.weights = weights.flatten(0, 1)

    def sum_entries(self, x: Tensor) -> Tensor:
        """Interpolate: sum two entries a query row, (Ty * M, w) to (M * H, w)."""
        return _weighted_sum(x, self.index, self.weights)

    def sum_queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the query rows of every entry, (M * H, w) to (Ty * M, w).

        Once by the weights, for the gradient of the entries, and once by their slopes,
        for that of the fractional indices.
        """
        index, hats, slopes = self._reversed
        return _weighted_sum(x, index, hats), _weighted_sum(x, index, slopes)

    @cached_property
    def _reversed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return query rows, weights and slopes of every entry and key, (Ty * M, K).

        The transpose of the sparse matrix in ``index`` and ``weights``, with as many
        rows in every bag, so that it is a sum of bags, too, and needs no atomic adds.
        """
        num_keys, num_queries = self.entries_y.shape
        # 1. Indices of a key are begin + i * step for the query rows i: an entry weighs
        # something in the rows i where that is less than 1 away from it.
        begin, end = self.entries_y[:, :1], self.entries_y[:, -1:]
        step = (end - begin) / max(num_queries - 1, 1)  # (M, 1)
        # 2. The size K of a bag: rows less than an entry away, and one more at both
        # ends, for rounding. (A table of one row has no step: then all rows.)
        size = ceil((2 / step[0]).nan_to_num(num_queries).item()) + 3
        size = min(size, num_queries)
        # 3. The first row of every bag: just before the first that is less than 1 away,
        # moved so that the bag does not reach beyond the rows.
        entry = torch.arange(self.num_rows, device=begin.device)[:, None, None]
        first = ((entry - 1 - begin) / step).ceil() - 1
        first = first.nan_to_num().clamp(0, num_queries - size).long()  # (Ty, M, 1)
        # 4. The rows of every bag, as rows of (M * H, w).
        row = first + torch.arange(size, device=first.device)  # (Ty, M, K)
        index = row + num_queries * torch.arange(num_keys, device=row.device)[:, None]
        # 5. Their weights, from the indices themselves: rows that are too far away,
        # there for rounding or at the ends, get zero.
        distance = (entry - self.entries_y.flatten()[index]).flatten(0, 1)
        return index.flatten(0, 1), _hat(distance), _hat_slope(distance)


def _weighted_sum(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of (L, w) by indices and weights (n, K), to (n, w)."""
    return F.embedding_bag(index, x, mode='sum', per_sample_weights=weights)
