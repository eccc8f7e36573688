"""Multi-scale deformable attention: values at sampling locations of every query.

There are no keys: queries predict locations on feature maps of several sizes, and the
weights of the values there (Deformable DETR).
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmsparse.ops import triton
from mmsparse.ops._backend import resolve_backend
from mmsparse.ops._precision import precise_dtype
from mmsparse.ops._tuning import fastest_backend
from mmsparse.ops.pyramid import Size, level_layout
from mmsparse.ops.sampling import (
    current_sampler,
    gather_and_sum,
    opaque_gather_and_sum,
)

BACKENDS = ('auto', 'reference', 'gathered', 'triton')


def multi_scale_deformable_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: Sequence[Size] | Tensor,
    backend: str = 'auto',
) -> Tensor:
    """Sum values at sampling locations on the feature maps of all levels, weighted.

    Values are interpolated bilinearly between the cells of their level; beyond it they
    are zero. Locations and weights are float32 at least, and so are the sums, whatever
    the values are.

    Args:
        value: Values of the cells of all levels, row-major, (B, N, heads, D).
        points: Sampling locations, (x, y) from 0 to 1 over each level,
            (B, Q, heads, levels, points, 2).
        weights: Weights of these, (B, Q, heads, levels, points).
        sizes: Height and width of every level; or, if they are not known on the CPU, an
            integer tensor on the device of ``value``, (levels, 2), for which
            ``reference`` has to wait.
        backend: ``reference``, by torch's grid_sample; ``gathered``, by gathering the
            four cells around every location; ``triton``, a kernel for GPUs; or
            ``auto``, which follows :func:`mmsparse.ops.sampling.use_sampler`.

    Returns:
        (B, Q, heads, D), in the dtype of ``value``.

    Raises:
        ValueError: The levels of ``sizes`` are not those of ``points`` or do not have N
            cells, or ``backend`` is unknown or cannot compute it.

    Source: Deformable DETR, arXiv 2010.04159, equation 3.
    """
    backend = resolve_backend(backend, BACKENDS)
    _check(value, points, sizes)
    dtype = precise_dtype(value)
    points, weights = points.to(dtype), weights.to(dtype)
    if backend == 'auto':
        backend = _choose_backend(value, points)
    if backend == 'reference':
        return _reference(value, points, weights, sizes)
    shapes, starts = level_layout(sizes, value.device)
    if backend == 'triton':
        triton.require_triton(value)
        from mmsparse.ops.triton import multi_scale as kernels

        return kernels.attend(value, shapes, starts, points, weights)
    attend = opaque_gather_and_sum() if backend == 'plugin' else gather_and_sum
    return attend(value.to(dtype), shapes, starts, points, weights).to(value.dtype)


def _check(value: Tensor, points: Tensor, sizes: Sequence[Size] | Tensor) -> None:
    if len(sizes) != points.shape[3]:
        raise ValueError(
            f'sizes must have one for each of the {points.shape[3]} levels of points; '
            f'got {len(sizes)}.'
        )
    if isinstance(sizes, Tensor):  # known to the GPU only
        return
    num_cells = sum(height * width for height, width in sizes)
    if num_cells != value.shape[1]:
        raise ValueError(
            f'sizes must be of the {value.shape[1]} cells of value; got '
            f'{[tuple(size) for size in sizes]}, which have {num_cells}.'
        )


def _choose_backend(value: Tensor, points: Tensor) -> str:
    """Choose by the sampler of the context, by measurements, or by the device."""
    sampler = current_sampler()
    if sampler != 'grid_sample':
        return 'gathered' if sampler == 'gather' else 'plugin'
    preferred = 'triton' if triton.is_preferred(value) else 'reference'
    measured = fastest_backend(
        'multi_scale_deformable_attention',
        value,
        ('reference', 'gathered', preferred),
        queries=points.shape[1],
        samples=points.shape[3] * points.shape[4],
        head_dim=value.shape[3],
    )
    return measured or preferred


def _reference(
    value: Tensor, points: Tensor, weights: Tensor, sizes: Sequence[Size] | Tensor
) -> Tensor:
    """Sample level by level."""
    if isinstance(sizes, Tensor):
        sizes = sizes.tolist()
    cells = value.split([height * width for height, width in sizes], dim=1)
    levels = zip(cells, points.unbind(3), weights.unbind(3), sizes, strict=True)
    first, *others = (_sample_level(*level) for level in levels)
    out = sum(others, first).unflatten(0, value.shape[::2])  # (B, heads, D, Q)
    return out.permute(0, 3, 1, 2).to(value.dtype)


def _sample_level(value: Tensor, points: Tensor, weights: Tensor, size: Size) -> Tensor:
    """Sample the heads of a level as feature maps.

    Args:
        value: (B, H * W, heads, D).
        points: (B, Q, heads, points, 2).
        weights: (B, Q, heads, points).
        size: H and W.

    Returns:
        (B * heads, D, Q), in the dtype of the points.
    """
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, size)
    grid, weights = (x.transpose(1, 2).flatten(0, 1) for x in (points, weights))
    sampled = F.grid_sample(maps.to(grid.dtype), 2 * grid - 1, align_corners=False)
    return (sampled * weights.unsqueeze(1)).sum(-1)  # over the points
