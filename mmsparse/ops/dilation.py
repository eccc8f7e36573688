"""Dilated patterns: an op on the phases of a feature map, every d-th row and column."""

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from mmsparse.ops._backend import is_symbolic, resolve_backend
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops.regions import Size

BACKENDS = ('auto', 'reference')


def split_phases(x: Tensor, dilation: Size) -> Tensor:
    """Rearrange a feature map into its phases: every d-th row and d'-th column.

    Args:
        x: Feature map, (B, H, W, C).
        dilation: Divisors of H and W, (d, d').

    Returns:
        (B * d * d', H / d, W / d', C).
    """
    down, across = dilation
    x = x.unflatten(2, (-1, across)).unflatten(1, (-1, down))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def merge_phases(x: Tensor, dilation: Size) -> Tensor:
    """Merge phases into a feature map; the inverse of :func:`split_phases`.

    Args:
        x: Phases, (B * d * d', H / d, W / d', C).
        dilation: Number of phases down and across, (d, d').

    Returns:
        (B, H, W, C).
    """
    x = x.unflatten(0, (-1, *dilation)).permute(0, 3, 1, 4, 2, 5)
    return x.flatten(3, 4).flatten(1, 2)


def dilated(
    attend: Callable[..., Tensor],
    tensors: Sequence[Tensor],
    dilation: int,
    backend: str = 'auto',
) -> Tensor:
    """Call an op on every phase of its feature maps.

    Args:
        attend: Maps feature maps (B', h, w, C) to one of that size.
        tensors: Feature maps, (B, H, W, C), H and W at least the dilation.
        dilation: Rows and columns between those of a phase; need not divide H and W.
        backend: ``reference`` calls it for one phase after the other, ``auto`` for all
            phases of one size together.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: ``backend`` is unknown.
    """
    backend = resolve_backend(backend, BACKENDS)
    height, width = tensors[0].shape[1:3]
    if backend == 'reference' or is_symbolic(height % dilation, width % dilation):
        return _one_by_one(attend, tensors, dilation)
    return _together(attend, tensors, (dilation, dilation))


def _one_by_one(
    attend: Callable[..., Tensor], tensors: Sequence[Tensor], dilation: int
) -> Tensor:
    out = torch.empty_like(tensors[-1])
    for i, j in product(range(dilation), repeat=2):
        phase = [x[:, i::dilation, j::dilation] for x in tensors]
        out[:, i::dilation, j::dilation] = attend(*phase)
    return out


def _together(
    attend: Callable[..., Tensor], tensors: Sequence[Tensor], dilation: Size
) -> Tensor:
    """Call an op on all phases at once or, if their sizes differ, twice by axis."""
    axis = 1 if tensors[0].shape[1] % dilation[0] else 2
    length, phases = tensors[0].shape[axis], dilation[axis - 1]
    longer = length % phases  # number of phases with one token more
    if longer == 0:
        out = attend(*(split_phases(x, dilation) for x in tensors))
        return merge_phases(out, dilation)

    # 1. Sort the axis so that the longer phases come first. They are a feature map by
    # themselves, in which the dilation is the number of these phases.
    order, inverse = _sort_phases(length, phases, tensors[0].device)
    lengths = [longer * (length // phases + 1), (phases - longer) * (length // phases)]
    parts = zip(
        *(x.index_select(axis, order).split(lengths, dim=axis) for x in tensors),
        strict=True,
    )
    # 2. Call the op on both feature maps.
    outs = []
    for part, count in zip(parts, (longer, phases - longer), strict=True):
        step = (count, dilation[1]) if axis == 1 else (dilation[0], count)
        outs.append(_together(attend, part, step))
    # 3. Put the axis back into its order.
    return torch.cat(outs, dim=axis).index_select(axis, inverse)


@cached_by_size
def _sort_phases(
    length: int, phases: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the order of an axis with longer phases first, and its inverse, (L,)."""
    # Not by sorting: ONNX has no stable sort.
    token = torch.arange(length, device=device)
    row, phase = token // phases, token % phases
    rows, longer = divmod(length, phases)
    inverse = torch.where(
        phase < longer,
        row * longer + phase,
        rows * longer + row * (phases - longer) + phase,
    )
    return torch.zeros_like(token).scatter(0, inverse, token), inverse
