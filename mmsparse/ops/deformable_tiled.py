"""Attention with a bias from a table, in strips of queries, computed anew backward.

A bilinear reading is one along the columns of the table and one along its rows. The
first is a product with a matrix of hat functions. In the second, all queries of one row
of the map weigh the same two rows, key by key: a sum of rows as in a bag of embeddings.
So no coordinates of pairs of query and key are computed, and nothing is gathered entry
by entry. Logits lie as (keys, queries), for so the bias comes.
"""

from collections.abc import Iterator
from functools import cached_property
from math import ceil
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmsparse.ops._precision import no_autocast

STRIP = 2**22  # logits of a head that are there at a time
LEAST = 16  # columns that strips have a multiple of: a line of cache is gathered


def tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    """Compute :func:`mmsparse.ops.deformable_attention` with few logits at a time.

    There are no gradients of gradients. All computes in the type of the positions.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, Hk, Wk, C).
        v: Values, (B, Hk, Wk, C).
        positions: Where the keys come from, (B, groups, Hk, Wk, 2).
        table: Bias by displacement, (heads, Ty, Tx).
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,), in
            even steps upwards; without gradient.

    Returns:
        (B, H, W, C).
    """
    precise = positions.dtype
    heads = (x.to(precise).unflatten(-1, (len(table), -1)) for x in (q, k, v))
    queries, keys, values = heads  # (B, h, w, heads, D)
    out = _InStrips.apply(
        queries * queries.shape[-1] ** -0.5,
        keys.flatten(1, 2),
        values.flatten(1, 2),
        positions.flatten(2, 3),
        table.to(precise),
        *axes,
    )
    return out.flatten(3).to(q.dtype)


class _InStrips(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        positions: Tensor,
        table: Tensor,
        rows: Tensor,
        columns: Tensor,
    ) -> Tensor:
        out, log_sums = torch.empty_like(q), torch.empty_like(q[..., :1])
        with no_autocast(q):
            for b, h, strip, reading in _strips(positions, table, rows, columns):
                place = b, slice(None), strip, h
                queries, keys = q[place].flatten(0, 1), k[b, :, h]
                logits = reading.read(table[h])[0].addmm_(keys, queries.t())
                top = logits.amax(dim=0)
                weights = logits.sub_(top).exp_()
                total = weights.sum(dim=0)
                values = weights.t() @ v[b, :, h] / total[:, None]
                out[place] = values.view_as(out[place])
                log_sums[place] = (top + total.log()).view_as(log_sums[place])
        ctx.save_for_backward(q, k, v, positions, table, rows, columns, out, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, positions, table, rows, columns, out, log_sums = ctx.saved_tensors
        dq, dk, dv, dpositions, dtable = (
            torch.empty_like(q),
            *(torch.zeros_like(x) for x in (k, v, positions, table)),
        )
        means = (grad * out).sum(dim=-1, keepdim=True)
        groups = _groups(positions, table)
        with no_autocast(grad):
            for b, h, strip, reading in _strips(positions, table, rows, columns):
                place = b, slice(None), strip, h
                queries, keys, values = q[place].flatten(0, 1), k[b, :, h], v[b, :, h]
                own_grad = grad[place].flatten(0, 1)
                bias, across = reading.read(table[h])
                logits = bias.addmm_(keys, queries.t())
                weights = logits.sub_(log_sums[place].flatten()).exp_()
                dv[b, :, h] += weights @ own_grad
                dweights = values @ own_grad.t()
                dlogits = dweights.sub_(means[place].flatten()).mul_(weights)
                dq[place] = (dlogits.t() @ keys).view_as(dq[place])
                dk[b, :, h] += dlogits @ queries
                dplane, dposition = reading.backward(table[h], across, dlogits)
                dtable[h] += dplane
                dpositions[b, groups[h]] += dposition
        return dq, dk, dv, dpositions, dtable, None, None


def _groups(positions: Tensor, table: Tensor) -> list[int]:
    """The group of every head."""
    share = len(table) // positions.shape[1]
    return [head // share for head in range(len(table))]


def _strips(
    positions: Tensor, table: Tensor, rows: Tensor, columns: Tensor
) -> Iterator[tuple[int, int, slice, '_Reading']]:
    """Go through pictures, heads and strips of columns."""
    batch, num_groups, num_keys, _ = positions.shape
    share = len(table) // num_groups
    width = max(STRIP // (num_keys * len(rows)) // LEAST, 1) * LEAST
    for b in range(batch):
        for group in range(num_groups):
            own = positions[b, group]
            bags = _Bags(_indices(rows, own[:, 0], table.shape[1]), table.shape[1])
            for left in range(0, len(columns), width):
                strip = slice(left, left + width)
                across = _indices(columns[strip], own[:, 1], table.shape[2])
                reading = _Reading(bags, across, table.shape[2])
                for head in range(group * share, (group + 1) * share):
                    yield b, head, strip, reading


def _indices(queries: Tensor, keys: Tensor, entries: int) -> Tensor:
    """Where between the entries of the table to read, (M, n)."""
    return (queries - keys[:, None] + 2) * ((entries - 1) / 4)


def _hat(way: Tensor) -> Tensor:
    """The weight of an entry at some way from where is read."""
    return (1 - way.abs()).relu()


def _slope(way: Tensor) -> Tensor:
    """Derivative of :func:`_hat` by where is read, that to the right at the kinks."""
    return (2 * way.ceil() - 1) * ((way > -1) & (way <= 1))


class _Reading:
    """Reads planes of a table for all keys and a strip of queries.

    Args:
        bags: How to read along the rows.
        places: Where to read along the columns, (M, w).
        entries: Number of columns of the table.
    """

    def __init__(self, bags: '_Bags', places: Tensor, entries: int) -> None:
        entry = torch.arange(entries, dtype=places.dtype, device=places.device)
        self.bags = bags
        self.way = (entry[:, None, None] - places).flatten(1)  # (Tx, M * w)
        self.hats = _hat(self.way)
        self.size = places.shape

    @cached_property
    def slopes(self) -> Tensor:
        """Of the hats, (Tx, M * w)."""
        return _slope(self.way)

    def read(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """(Ty, Tx) to the bias (M, H * w), and what was read along the columns."""
        across = (plane @ self.hats).view(-1, self.size[1])  # (Ty * M, w)
        return self.bags.sum_entries(across).view(self.size[0], -1), across

    def backward(
        self, plane: Tensor, across: Tensor, grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the plane and of the positions of the keys, (M, 2)."""
        num_keys, width = self.size
        dacross, dslopes = self.bags.sum_queries(grad.view(-1, width))
        down = (across * dslopes).view(-1, num_keys, width).sum((0, 2))
        dacross = dacross.view(len(plane), -1)
        dhats = (plane.t() @ dacross).mul_(self.slopes)
        right = dhats.view(-1, num_keys, width).sum((0, 2))
        size = plane.new_tensor(plane.shape)
        dpositions = torch.stack([down, right], dim=-1) * ((1 - size) / 4)
        return dacross @ self.hats.t(), dpositions


class _Bags:
    """Which entries down the table every row of queries reads, and the reverse.

    Args:
        places: Where to read, in even steps along each row, (M, H).
        entries: Number of rows of the table.
    """

    def __init__(self, places: Tensor, entries: int) -> None:
        self.places = places
        self.entries = entries
        low = places.floor().nan_to_num().clamp(-1, entries)
        entry = low[..., None] + low.new_tensor([0, 1])  # (M, H, 2)
        weights = _hat(entry - places[..., None])
        weights = weights * ((entry >= 0) & (entry < entries))
        key = torch.arange(len(places), device=places.device)[:, None, None]
        self.index = entry.clamp(0, entries - 1).long() * len(places) + key
        self.index = self.index.flatten(0, 1)
        self.weights = weights.flatten(0, 1)

    def sum_entries(self, x: Tensor) -> Tensor:
        """(Ty * M, w) to (M * H, w)."""
        return _weighted_sum(x, self.index, self.weights)

    def sum_queries(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(M * H, w) to (Ty * M, w), by weights and by their slopes."""
        index, hats, slopes = self._reversed
        return _weighted_sum(x, index, hats), _weighted_sum(x, index, slopes)

    @cached_property
    def _reversed(self) -> tuple[Tensor, Tensor, Tensor]:
        """For every entry and key the rows of queries and weights, (Ty * M, K)."""
        num_keys, num_rows = self.places.shape
        begin, end = self.places[:, :1], self.places[:, -1:]
        step = (end - begin) / max(num_rows - 1, 1)
        # Rows less than an entry away, and one more at both ends, for rounding. There
        # is no step in tables of one row.
        near = min(ceil((2 / step[0]).nan_to_num(num_rows).item()) + 3, num_rows)
        entry = torch.arange(self.entries, device=begin.device)[:, None, None]
        first = ((entry - 1 - begin) / step).ceil() - 1
        first = first.nan_to_num().clamp(0, num_rows - near).long()  # (Ty, M, 1)
        row = first + torch.arange(near, device=first.device)
        index = row + num_rows * torch.arange(num_keys, device=row.device)[:, None]
        way = entry - self.places.flatten()[index]
        way = way.flatten(0, 1)
        return index.flatten(0, 1), _hat(way), _slope(way)


def _weighted_sum(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum rows of (L, w) by indices (n, K), to (n, w)."""
    return F.embedding_bag(index, x, mode='sum', per_sample_weights=weights)
