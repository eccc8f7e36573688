"""Attention inside stripes: cross-shaped windows (CSWin), rows and columns (axial)."""

import torch
from torch import Tensor

from mmsparse.ops._backend import is_symbolic
from mmsparse.ops._cache import cached_by_size
from mmsparse.ops.regions import Size, crop, pad_to_multiple, partition_regions
from mmsparse.ops.windows import region_attention


def cross_shaped_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    stripe_width: int,
    backend: str = 'auto',
) -> Tensor:
    """Attend in horizontal stripes by half of the heads, in vertical ones by the rest.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C). Dot products with queries are scaled by
            (C / heads)**-0.5.
        v: Values, (B, H, W, C).
        num_heads: Number of heads, even; divides C.
        stripe_width: Height of the horizontal and width of the vertical stripes. The
            last ones may be narrower, and there is one if it exceeds the feature map.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.

    Returns:
        (B, H, W, C), the heads of the horizontal stripes first.

    Raises:
        ValueError: The number of heads is odd or does not divide C, the stripes have no
            width, or ``backend`` is unknown or cannot compute it.

    Source: CSWin Transformer, arXiv 2107.00652, section 3.2.
    """
    if num_heads % 2:
        raise ValueError(
            'num_heads must be even, for horizontal and vertical stripes; got '
            f'{num_heads}.'
        )
    halves = zip(*(x.chunk(2, dim=-1) for x in (q, k, v)), strict=True)
    stripes = cross_stripes((q.shape[1], q.shape[2]), stripe_width)
    outs = [
        stripe_attention(q, k, v, num_heads // 2, stripe, backend)
        for (q, k, v), stripe in zip(halves, stripes, strict=True)
    ]
    return torch.cat(outs, dim=-1)


def cross_stripes(size: Size, stripe_width: int) -> tuple[Size, Size]:
    """Return the sizes of a horizontal and of a vertical stripe.

    Args:
        size: Height and width of the feature map.
        stripe_width: Height of the horizontal and width of the vertical stripe.

    Returns:
        Height and width of both.
    """
    height, width = size
    return (stripe_width, width), (height, stripe_width)


def stripe_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_heads: int,
    stripe: Size,
    backend: str = 'auto',
) -> Tensor:
    """Attend from every token to the tokens of its stripe.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C). Dot products with queries are scaled by
            (C / heads)**-0.5.
        v: Values, (B, H, W, C).
        num_heads: Number of heads; divides C.
        stripe: Height and width of the stripes, which may be any rectangles: (1, W) are
            rows, (H, 1) columns. The last ones may reach beyond the feature map, where
            there are no keys.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The heads do not divide C, a side of the stripes is less than 1, or
            ``backend`` is unknown or cannot compute it.

    Source: of rows and columns, Axial Attention, arXiv 1912.12180, section 3.
    """
    if not is_symbolic(*stripe) and min(stripe) < 1:
        raise ValueError(
            'stripe must have a height and width of at least 1; got '
            f'{stripe[0]}x{stripe[1]}.'
        )
    size = q.shape[1], q.shape[2]
    stripe = clamp_stripe(stripe, size)
    bias = None
    padded = pad_to_multiple(q, stripe)
    if padded is not q:
        bias = _padding_bias(size, stripe, q.dtype, q.device)
        bias = bias.expand(-1, num_heads, -1, -1)
    k, v = (pad_to_multiple(x, stripe) for x in (k, v))
    grid = stripe_grid(padded, stripe)
    return crop(region_attention(padded, k, v, grid, num_heads, bias, backend), size)


def clamp_stripe(stripe: Size, size: Size) -> Size:
    """Reduce a stripe to the size of the feature map, which saves padding."""
    if is_symbolic(*stripe, *size):
        return stripe
    return min(stripe[0], size[0]), min(stripe[1], size[1])


def stripe_grid(x: Tensor, stripe: Size) -> Size:
    """Return the number of stripes, (rows, columns), of a feature map (B, H, W, C)."""
    return x.shape[1] // stripe[0], x.shape[2] // stripe[1]


@cached_by_size
def _padding_bias(
    size: Size, stripe: Size, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a bias that masks the keys beyond the feature map, (R, 1, 1, N)."""
    inside = pad_to_multiple(torch.ones(1, *size, 1, device=device), stripe)
    inside = partition_regions(inside, stripe_grid(inside, stripe))  # (1, R, N, 1)
    bias = torch.zeros_like(inside, dtype=dtype).masked_fill(inside == 0, -torch.inf)
    return bias.permute(1, 0, 3, 2)
