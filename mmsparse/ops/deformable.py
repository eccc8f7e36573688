"""Attention to keys at free positions of the map (DAT).

Coordinates run along each axis from -1 to +1, the centers of the first and the last
pixel, and come as (y, x). They are float32 at least, whatever the features are: half
precision would err by up to a third of a pixel on a large map.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops import attention
from mmsparse.ops._backend import is_compiling, pick_backend
from mmsparse.ops._chunking import chunked_attention
from mmsparse.ops._precision import no_autocast, precise_type
from mmsparse.ops.attention import biased_attention, merge_heads, split_heads
from mmsparse.ops.deformable_tiled import tiled_attention

BACKENDS = (*attention.BACKENDS, 'chunked', 'tiled')
WHOLE = 2**23  # logits up to which all queries attend at once
MANY = 2**21  # logits of a head from which strips are faster on a CPU
PART = 2**20  # logits that are there at a time where there are more


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
    backend: str = 'auto',
) -> Tensor:
    """Let every query attend to all keys, with a bias by where these were sampled.

    Args:
        q: Queries, (B, H, W, C); their products with the keys are scaled by the root of
            the width of a head.
        k: Keys, (B, Hk, Wk, C).
        v: Values, (B, Hk, Wk, C).
        positions: Where the keys come from, (B, groups, Hk, Wk, 2). Group i is seen by
            the i-th share of the heads.
        table: Bias by displacement, (heads, Ty, Tx), any size: displacements of a whole
            map up and down are its first and last row; zero lies beyond.
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,), in
            even steps upwards; without gradient.
        backend: How to attend: ``reference``, ``products``, ``sdpa``, ``parts``,
            ``strips`` or ``auto``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The groups do not divide the heads or these not C, or ``backend`` is
            unknown.

    Source: DAT, arXiv 2201.00520, section 3.2.
    """
    num_heads, num_groups = len(table), positions.shape[1]
    if num_heads % num_groups:
        raise ValueError(
            f'The number of groups must divide the number of heads, {num_heads}; got '
            f'{num_groups}.'
        )
    backend = pick_backend(backend, BACKENDS)
    num_logits = q.shape[1:3].numel() * k.shape[1:3].numel()  # of a head
    if backend == 'auto' and num_logits >= MANY and _runs_strips(q):
        backend = 'tiled'
    if backend == 'auto' and _exceeds(WHOLE, q, num_heads * num_logits):
        backend = 'chunked'
    if backend == 'tiled':
        return tiled_attention(q, k, v, positions, table, axes)
    if backend == 'chunked':
        return _in_parts(q, k, v, positions, table, axes)
    read = _bias_by_definition if backend == 'reference' else _bias
    bias = read(table, positions, axes)
    with no_autocast(q):  # which would make halves of the logits
        return attend_map(q, k, v, num_heads, bias, backend)


def _bias_by_definition(
    table: Tensor, positions: Tensor, axes: tuple[Tensor, Tensor]
) -> Tensor:
    """Read the table at half the way from every key to every query."""
    queries = _grid(*axes).reshape(-1, 1, 2)
    displacement = (queries - positions.flatten(2, 3).unsqueeze(2)) / 2
    return _read(table, displacement.flip(-1))  # the sampler wants (x, y)


def _bias(table: Tensor, positions: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    return lookup_bias(table, displacements(positions, axes))


def _runs_strips(q: Tensor) -> bool:
    """Whether strips are fast here: the compiler cannot see into them."""
    eager = q.device.type == 'cpu' and not is_compiling()
    return eager and q.dtype == torch.float32


def _exceeds(most: int, q: Tensor, num_logits: int) -> bool:
    """Whether there are too many logits at once; the compiler decides for itself."""
    return not is_compiling() and q.shape[0] * num_logits > most


def _in_parts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    """Attend with a few rows of queries at a time."""
    batch, height, width, _ = q.shape
    num_heads, num_keys = len(table), k.shape[1] * k.shape[2]
    k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (k, v))
    of_a_row = batch * num_heads * width * num_keys
    out = chunked_attention(
        _attend_rows,
        (q.transpose(0, 1), axes[0]),
        (k, v, positions, table, axes[1]),
        max(PART // of_a_row, 1),
    )
    return out.transpose(0, 1)


def _attend_rows(
    q: Tensor,
    rows: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    table: Tensor,
    columns: Tensor,
) -> Tensor:
    """Let the queries of some rows attend.

    Args:
        q: (R, B, W, C).
        rows: Their coordinates, (R,).
        k: (B, heads, M, D).
        v: (B, heads, M, D).
        positions: (B, groups, Hk, Wk, 2).
        table: (heads, Ty, Tx).
        columns: Coordinates of the columns of queries, (W,).

    Returns:
        (R, B, W, C).
    """
    num_rows = len(q)
    bias = _bias(table, positions, (rows, columns))
    q = split_heads(q.transpose(0, 1).flatten(1, 2), len(table))
    out = merge_heads(biased_attention(q, k, v, bias))
    return out.unflatten(1, (num_rows, -1)).transpose(0, 1)


def attend_map(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    bias: Tensor | None = None,
    backend: str = 'auto',
    scale: float | None = None,
) -> Tensor:
    """Let every place of one map attend to every place of another.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, Hk, Wk, C).
        v: Values, (B, Hk, Wk, C).
        num_heads: Number of heads; divides C.
        bias: Added to the logits, broadcasts to (B, heads, H * W, Hk * Wk).
        backend: How to attend: ``reference``, ``products``, ``sdpa`` or ``auto``.
        scale: Factor on the products of queries and keys; the width of a head to the
            power of -0.5 if None.

    Returns:
        (B, H, W, C).
    """
    size = q.shape[1:3]
    q, k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (q, k, v))
    out = merge_heads(biased_attention(q, k, v, bias, backend, scale))
    return out.unflatten(1, size)


def displacements(positions: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    """Half the way from every key to every query, so that -1 to +1 spans the map.

    Args:
        positions: Positions of the keys, (B, groups, Hk, Wk, 2).
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,).

    Returns:
        (B, groups, H * W, Hk * Wk, 2).
    """
    rows, columns = axes
    queries = _grid(rows / 2, columns / 2).reshape(-1, 1, 2)
    return queries - positions.flatten(2, 3).unsqueeze(2) / 2


def lookup_bias(table: Tensor, displacement: Tensor) -> Tensor:
    """Read a table between its entries.

    Args:
        table: (heads, Ty, Tx); its corners are the displacements of -1 and +1.
        displacement: (B, groups, N, M, 2).

    Returns:
        (B, heads, N, M), zero where the displacement leaves the table.
    """
    # The sampler wants (x, y): of the transposed table, that is (y, x).
    return _read(table.transpose(-2, -1), displacement)


def _read(table: Tensor, places: Tensor) -> Tensor:
    """Read (heads, h, w) at (B, groups, N, M, 2) as (x, y), to (B, heads, N, M)."""
    batch, num_groups = places.shape[:2]
    planes = table.to(places.dtype).unflatten(0, (num_groups, -1))
    planes = planes.expand(batch, *planes.shape).flatten(0, 1)
    bias = _sample(planes, places.flatten(0, 1))
    return bias.unflatten(0, (batch, num_groups)).flatten(1, 2)


def sample_points(x: Tensor, positions: Tensor) -> Tensor:
    """Read a map between its pixels; each group of channels at its own positions.

    Args:
        x: Map, (B, C, H, W).
        positions: (B, groups, Hk, Wk, 2); the groups divide C.

    Returns:
        (B, C, Hk, Wk); beyond the map lies zero.
    """
    batch, num_groups = positions.shape[:2]
    groups = x.to(positions.dtype).unflatten(1, (num_groups, -1)).flatten(0, 1)
    sampled = _sample(groups, positions.flatten(0, 1).flip(-1))
    return sampled.unflatten(0, (batch, num_groups)).flatten(1, 2).to(x.dtype)


def _sample(x: Tensor, places: Tensor) -> Tensor:
    """Read (B, C, H, W) at (B, h, w, 2) as (x, y), to (B, C, h, w)."""
    return F.grid_sample(x, places, mode='bilinear', align_corners=True)


def positions_v2022(offsets: Tensor, offset_range: float) -> Tensor:
    """Where the keys are sampled, as the CVPR 2022 release has it.

    Args:
        offsets: What the offset network says, (B, groups, Hk, Wk, 2).
        offset_range: If positive, the bound of an offset in half key cells; 0 for no
            bound; negative to squash the positions into the map.

    Returns:
        (B, groups, Hk, Wk, 2), float32 at least.
    """
    offsets = offsets.to(precise_type(offsets))
    counts = offsets.shape[2:4]
    reference = _grid(*(cell_centers(count, offsets) for count in counts))
    if offset_range < 0:
        return (reference + offsets).tanh()
    if offset_range == 0:
        return reference + offsets
    return reference + offsets.tanh() * (offset_range / offsets.new_tensor(counts))


def positions_v2023(offsets: Tensor, offset_range: float) -> Tensor:
    """Where the keys are sampled, as the DAT++ release has it.

    Its grid without offsets lies half a cell too far down and right: the last row and
    column are outside the map. The released weights know it so.

    Args:
        offsets: What the offset network says, (B, groups, Hk, Wk, 2).
        offset_range: If positive, the bound of an offset in half key cells; 0 for no
            offsets; negative for offsets without bound, cut at the border of the map.

    Returns:
        (B, groups, Hk, Wk, 2), float32 at least.
    """
    offsets = offsets.to(precise_type(offsets))
    counts = offsets.shape[2:4]
    reference = _grid(*(_overhanging_centers(count, offsets) for count in counts))
    if offset_range < 0:
        return (reference + offsets).clamp(-1, 1)
    spans = offsets.new_tensor([max(count - 1, 1) for count in counts])
    return reference + offsets.tanh() * (offset_range / spans)


def cell_centers(count: int, like: Tensor) -> Tensor:
    """Coordinates of the centers of equal cells that tile -1 to +1.

    Args:
        count: Number of cells.
        like: Gives type and device.

    Returns:
        (count,).
    """
    return (2 * _count(count, like) + 1) / count - 1


def pixel_centers(count: int, like: Tensor) -> Tensor:
    """Coordinates of pixels, the first at -1 and the last at +1; one alone at 0.

    Args:
        count: Number of pixels.
        like: Gives type and device.

    Returns:
        (count,).
    """
    if count == 1:
        return like.new_zeros(1)
    return 2 * _count(count, like) / (count - 1) - 1


def _overhanging_centers(count: int, like: Tensor) -> Tensor:
    if count == 1:
        return like.new_zeros(1)
    return (2 * _count(count, like) + 1) / (count - 1) - 1


def _count(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def _grid(rows: Tensor, columns: Tensor) -> Tensor:
    return torch.stack(torch.meshgrid(rows, columns, indexing='ij'), dim=-1)
