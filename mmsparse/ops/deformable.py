"""Attention to keys sampled at learned locations, with a bias read from a table (DAT).

Coordinates run along each axis from -1 to +1, the centers of the first and the last
pixel, and are ordered (y, x). They are float32 at least, whatever the features are:
half precision would be wrong by up to a third of a pixel on a large feature map.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmsparse.ops import attention
from mmsparse.ops._backend import is_tracing, resolve_backend
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops._chunking import chunked_attention
from mmsparse.ops._devices import limit_unless_fits, settings_for
from mmsparse.ops._precision import no_autocast, precise_dtype
from mmsparse.ops._tuning import fastest_backend
from mmsparse.ops.attention import (
    biased_attention,
    full_attention,
    merge_heads,
    split_heads,
)
from mmsparse.ops.deformable_tiled import tiled_attention
from mmsparse.ops.pyramid import axes_to_points
from mmsparse.ops.sampling import grid_sample
from mmsparse.ops.triton import is_preferred, require_triton

BACKENDS = (*attention.BACKENDS, 'chunked', 'tiled', 'triton')
# Tensors of the size of the logits that are needed at a time: bias, logits, weights,
# and coordinates of pairs, which a group of heads shares.
LOGIT_TENSORS = 5


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
    backend: str = 'auto',
) -> Tensor:
    """Attend from every query to all sampled keys, with a relative position bias.

    The bias is interpolated in a table by the displacement from the sampling location
    of the key to the query. It is computed without autocast.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, Hk, Wk, C). Dot products with queries are scaled by
            (C / heads)**-0.5.
        v: Values, (B, Hk, Wk, C).
        locations: Sampling locations of the keys, (B, groups, Hk, Wk, 2). Group i
            serves the i-th of equal shares of the heads.
        table: Bias by displacement, (heads, Ty, Tx), of any size: the first and the
            last row are for displacements by the whole feature map up and down, and
            beyond them the bias is zero.
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,),
            evenly spaced, ascending; without gradient.
        backend: ``reference``; ``math`` or ``sdpa``, see
            :func:`mmsparse.ops.biased_attention`; ``chunked``, a few rows of queries at
            a time; ``tiled``, without coordinates of pairs, for CPUs; ``triton``, a
            kernel for GPUs that stores nothing for pairs; or ``auto``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The groups do not divide the heads or these not C, or ``backend`` is
            unknown, cannot compute it or is missing.

    Source: DAT, arXiv 2201.00520, section 3.2.
    """
    num_heads, num_groups = len(table), locations.shape[1]
    if num_heads % num_groups:
        raise ValueError(
            'locations must be of a number of groups that divides the number of heads '
            f'of the table, {num_heads}; got {num_groups} groups.'
        )
    if q.shape[-1] % num_heads:
        raise ValueError(
            f'num_heads must divide the channels, {q.shape[-1]}; got {num_heads}.'
        )
    backend = resolve_backend(backend, BACKENDS)
    if backend == 'auto':
        backend = _choose_backend(q, k, num_heads)
    if backend == 'tiled':
        return tiled_attention(q, k, v, locations, table, axes)
    if backend == 'triton':
        return _triton(q, k, v, locations, table, axes)
    if backend == 'chunked':
        return _chunked(q, k, v, locations, table, axes)
    lookup = _reference_bias if backend == 'reference' else _bias
    bias = lookup(table, locations, axes)  # (B, heads, H * W, Hk * Wk)
    with no_autocast(q):  # which would round the logits to half precision
        return full_attention(q, k, v, num_heads, bias, backend)


def _choose_backend(q: Tensor, k: Tensor, num_heads: int) -> str:
    """Choose what was measured to be the fastest, or else by the number of logits.

    The compiler does not need chunks or tiles.
    """
    kernels = ('triton',) if _suits_triton(q) else ()
    if is_tracing():
        return kernels[0] if kernels else 'auto'
    num_queries, num_keys = q.shape[1:3].numel(), k.shape[1:3].numel()
    fastest = fastest_backend(
        'deformable_attention',
        q,
        ('math', 'sdpa', 'chunked', 'tiled', *kernels),
        queries=num_queries,
        keys=num_keys,
        head_dim=q.shape[-1] // num_heads,
    )
    if fastest in ('chunked', 'tiled', 'triton'):
        return fastest
    if fastest is None and kernels:
        return kernels[0]
    # All logits at a time, if there are not too many.
    settings = settings_for(q)
    num_logits = num_queries * num_keys  # of a head
    if num_logits >= settings.tiled_min_logits and q.dtype == torch.float32:
        return 'tiled'
    num_logits *= q.shape[0] * num_heads
    limit = limit_unless_fits(
        settings.chunked_min_logits, LOGIT_TENSORS * num_logits, q
    )
    return 'chunked' if num_logits > limit else fastest or 'auto'


def _suits_triton(q: Tensor) -> bool:
    if not is_preferred(q):
        return False
    from mmsparse.ops.triton import deformable as kernels

    return kernels.is_supported()


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    require_triton(q)
    from mmsparse.ops.triton import deformable as kernels

    return kernels.attend(q, k, v, locations, table, axes)


def _reference_bias(
    table: Tensor, locations: Tensor, axes: tuple[Tensor, Tensor]
) -> Tensor:
    """Sample the table at half the displacement from every key to every query."""
    queries = axes_to_points(*axes).reshape(-1, 1, 2)
    displacement = (queries - locations.flatten(2, 3).unsqueeze(2)) / 2
    return _sample_table(table, displacement.flip(-1))  # grid_sample takes (x, y)


def _bias(table: Tensor, locations: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    return lookup_bias(table, displacements(locations, axes))


def _chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    axes: tuple[Tensor, Tensor],
) -> Tensor:
    """Attend with a few rows of queries at a time."""
    batch, height, width, _ = q.shape
    num_heads, num_keys = len(table), k.shape[1] * k.shape[2]
    k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (k, v))
    row_logits = batch * num_heads * width * num_keys
    out = chunked_attention(
        _attend_rows,
        (q.transpose(0, 1), axes[0]),
        (k, v, locations, table, axes[1]),
        max(settings_for(q).chunk_logits // row_logits, 1),
    )
    return out.transpose(0, 1)


def _attend_rows(
    q: Tensor,
    rows: Tensor,
    k: Tensor,
    v: Tensor,
    locations: Tensor,
    table: Tensor,
    columns: Tensor,
) -> Tensor:
    """Attend with the queries of some rows.

    Args:
        q: (R, B, W, C).
        rows: Coordinates of these rows, (R,).
        k: (B, heads, M, D).
        v: (B, heads, M, D).
        locations: (B, groups, Hk, Wk, 2).
        table: (heads, Ty, Tx).
        columns: Coordinates of the columns of queries, (W,).

    Returns:
        (R, B, W, C).
    """
    num_rows = len(q)
    bias = _bias(table, locations, (rows, columns))  # (B, heads, R * W, M)
    q = split_heads(q.transpose(0, 1).flatten(1, 2), len(table))
    out = merge_heads(biased_attention(q, k, v, bias))  # (B, R * W, C)
    return out.unflatten(1, (num_rows, -1)).transpose(0, 1)


def displacements(locations: Tensor, axes: tuple[Tensor, Tensor]) -> Tensor:
    """Compute half the displacement from every key to every query.

    So -1 to +1 spans displacements by the whole feature map.

    Args:
        locations: Sampling locations of the keys, (B, groups, Hk, Wk, 2).
        axes: Coordinates of the rows and of the columns of queries, (H,) and (W,).

    Returns:
        (B, groups, H * W, Hk * Wk, 2).
    """
    rows, columns = axes
    queries = axes_to_points(rows / 2, columns / 2).reshape(-1, 1, 2)
    # A sum: the gradient of a difference is negated for every pair before it is summed.
    return queries + locations.flatten(2, 3).unsqueeze(2) / -2


def lookup_bias(table: Tensor, displacement: Tensor) -> Tensor:
    """Interpolate a table between its entries.

    Args:
        table: (heads, Ty, Tx); its corners are the displacements of -1 and +1.
        displacement: (B, groups, N, M, 2).

    Returns:
        (B, heads, N, M), zero where the displacement is outside the table.
    """
    # grid_sample takes (x, y): of the transposed table, that is (y, x).
    return _sample_table(table.transpose(-2, -1), displacement)


def _sample_table(table: Tensor, points: Tensor) -> Tensor:
    """Sample (heads, h, w) at (B, groups, N, M, 2) as (x, y), to (B, heads, N, M)."""
    batch, num_groups = points.shape[:2]
    tables = table.to(points.dtype).unflatten(0, (num_groups, -1))
    tables = tables.expand(batch, *tables.shape).flatten(0, 1)
    bias = grid_sample(tables, points.flatten(0, 1), align_corners=True)
    return bias.unflatten(0, (batch, num_groups)).flatten(1, 2)


def sample_features(x: Tensor, locations: Tensor) -> Tensor:
    """Sample a feature map, each group of channels at separate locations.

    Args:
        x: Feature map, (B, C, H, W).
        locations: Sampling locations, (B, groups, Hk, Wk, 2); the groups divide C.

    Returns:
        (B, C, Hk, Wk), interpolated between the pixels; zero beyond the feature map.
    """
    batch, num_groups = locations.shape[:2]
    groups = x.to(locations.dtype).unflatten(1, (num_groups, -1)).flatten(0, 1)
    points = locations.flatten(0, 1).flip(-1)  # as (x, y)
    sampled = grid_sample(groups, points, align_corners=True)
    return sampled.unflatten(0, (batch, num_groups)).flatten(1, 2).to(x.dtype)


def sampling_locations_v2022(offsets: Tensor, offset_range: float) -> Tensor:
    """Add offsets to the grid of keys, as the CVPR 2022 release of DAT does.

    Args:
        offsets: Output of the offset network, (B, groups, Hk, Wk, 2).
        offset_range: If positive, the bound of an offset in half key cells; 0 for no
            bound; if negative, tanh squashes locations into the feature map.

    Returns:
        Sampling locations, (B, groups, Hk, Wk, 2), float32 at least.
    """
    offsets = offsets.to(precise_dtype(offsets))
    counts = offsets.shape[2:4]
    references = _grid(_cells, tuple(counts), offsets.dtype, offsets.device)
    if offset_range < 0:
        return (references + offsets).tanh()
    if offset_range == 0:
        return references + offsets
    return references + _scale_axes(offsets.tanh(), [offset_range / n for n in counts])


def sampling_locations_v2023(offsets: Tensor, offset_range: float) -> Tensor:
    """Add offsets to the grid of keys, as the DAT++ release does.

    Its grid without offsets is half a cell too far down and right: the last row and
    column are outside the feature map. The released weights are trained with it.

    Args:
        offsets: Output of the offset network, (B, groups, Hk, Wk, 2).
        offset_range: If positive, the bound of an offset in half key cells; 0 for no
            offsets; if negative, offsets are unbounded and locations are clamped to the
            feature map.

    Returns:
        Sampling locations, (B, groups, Hk, Wk, 2), float32 at least.
    """
    offsets = offsets.to(precise_dtype(offsets))
    counts = offsets.shape[2:4]
    references = _grid(_overhanging, tuple(counts), offsets.dtype, offsets.device)
    if offset_range < 0:
        return (references + offsets).clamp(-1, 1)
    bounds = [offset_range / max(count - 1, 1) for count in counts]
    return references + _scale_axes(offsets.tanh(), bounds)


def _scale_axes(x: Tensor, factors: Sequence[float]) -> Tensor:
    """Multiply the coordinates (y, x) of (..., 2), each by its number.

    A tensor of the numbers would be copied to the GPU, which waits for it.
    """
    y, x = x.unbind(-1)
    return torch.stack([y * factors[0], x * factors[1]], dim=-1)


def query_axis_v2022(count: int, like: Tensor) -> Tensor:
    """Return the coordinates of queries along an axis, as in the CVPR 2022 release.

    Args:
        count: Number of queries.
        like: Tensor of the same device, and of the same dtype or a less precise one.

    Returns:
        Centers of equal cells that tile -1 to +1, (count,).
    """
    return _cells(count, precise_dtype(like), like.device)


def query_axis_v2023(count: int, like: Tensor) -> Tensor:
    """Return the coordinates of queries along an axis, as in the DAT++ release.

    Args:
        count: Number of queries.
        like: Tensor of the same device, and of the same dtype or a less precise one.

    Returns:
        Centers of pixels, the first at -1 and the last at +1, (count,); 0 for one.
    """
    return _pixels(count, precise_dtype(like), like.device)


@cached_by_size
def _cells(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the centers of cells that tile -1 to +1, (count,)."""
    return 2 * (torch.arange(count, dtype=dtype, device=device) + 0.5) / count - 1


@cached_by_size
def _pixels(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return equal steps from -1 to +1, (count,); 0 for one."""
    pixels = torch.arange(count, dtype=dtype, device=device)
    return pixels if count == 1 else 2 * pixels / (count - 1) - 1


@cached_by_size
def _overhanging(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the centers of cells that overhang on the right, (count,); 0 for one."""
    pixels = torch.arange(count, dtype=dtype, device=device)
    return pixels if count == 1 else 2 * (pixels + 0.5) / (count - 1) - 1


@cached_by_size
def _grid(
    axis: Callable[..., Tensor],
    counts: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return the points of a grid with an axis of each of two counts, (h, w, 2)."""
    return axes_to_points(*(axis(count, dtype, device) for count in counts))
