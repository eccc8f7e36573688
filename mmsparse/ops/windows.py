"""Attention within windows, plain or shifted (Swin, and DAT's local blocks)."""

import torch
from torch import Tensor

from mmsparse.ops.attention import biased_attention, split_heads
from mmsparse.ops.regions import partition_regions

MASKED = -100.0  # what the released models add where a shifted window is cut


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    window: int,
    shift: int = 0,
    backend: str = 'auto',
) -> Tensor:
    """Let every token attend to the tokens of its window.

    With a shift the windows lie that much further down and right. A window that then
    crosses the border holds parts of opposite ends of the map, which hardly see each
    other: -100 is added to their logits.

    Args:
        q: Queries, (B, H, W, C); H and W are multiples of the window.
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        bias: Added to the logits of every window, (heads, N, N) with N = window**2.
        window: Edge length of a window.
        shift: Tokens by which the windows are shifted, 0 to ``window`` - 1.
        backend: How to compute it: ``reference``, ``products``, ``sdpa`` or ``auto``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The windows do not divide the map or the heads not C, the shift is
            out of range, or ``backend`` is unknown.

    Source: Swin, arXiv 2103.14030, section 3.2.
    """
    batch, height, width, _ = q.shape
    if height % window or width % window:
        raise ValueError(
            f'window={window} must divide the map of {height}x{width}; pad it first '
            f'(pad_to_multiple).'
        )
    check_shift(shift, window)
    grid, num_heads = (height // window, width // window), len(bias)
    fold = (0, 1)  # windows go with the pictures
    if shift:
        q, k, v = (x.roll((-shift, -shift), dims=(1, 2)) for x in (q, k, v))
        mask = _cut_mask(height, width, window, shift, like=bias)
        bias = (bias + mask[:, None]).flatten(0, 1)  # (R * heads, N, N)
        fold = (1, 2)  # each window has its own mask, the same for all pictures
    q, k, v = (_split(x, grid, num_heads).flatten(*fold) for x in (q, k, v))
    out = biased_attention(q, k, v, bias, backend)
    out = _merge(out.reshape(batch, -1, num_heads, *out.shape[2:]), grid, window)
    return out.roll((shift, shift), dims=(1, 2)) if shift else out


def _split(x: Tensor, grid: tuple[int, int], num_heads: int) -> Tensor:
    """(B, H, W, C) to (B, R, heads, N, D), copied once."""
    rows, columns = grid
    x = split_heads(x, num_heads)  # (B, H, heads, W, D)
    x = x.unflatten(3, (columns, -1)).unflatten(1, (rows, -1))
    x = x.permute(0, 1, 4, 3, 2, 5, 6)  # (B, rows, columns, heads, h, w, D)
    return x.flatten(4, 5).flatten(1, 2)


def _merge(x: Tensor, grid: tuple[int, int], window: int) -> Tensor:
    """(B, R, heads, N, D) to (B, H, W, C), copied once."""
    x = x.unflatten(3, (window, -1)).unflatten(1, grid).permute(0, 1, 4, 2, 5, 3, 6)
    return x.flatten(5).flatten(3, 4).flatten(1, 2)


def window_bias(table: Tensor, window: int) -> Tensor:
    """Spread a table of relative positions over the pairs of tokens of a window.

    Args:
        table: One row for each (query minus key) down and across, row-major,
            ((2 * window - 1)**2, heads).
        window: Edge length of the window.

    Returns:
        (heads, N, N) with N = window**2, queries before keys.

    Source: Swin, arXiv 2103.14030, equation 4.
    """
    span = 2 * window - 1
    place = torch.arange(window, device=table.device)
    step = place[:, None] - place + window - 1  # (query, key)
    index = span * step[:, None, :, None] + step[None, :, None, :]
    tokens = window**2
    bias = table.index_select(0, index.flatten())  # (N * N, heads)
    return bias.reshape(tokens, tokens, -1).permute(2, 0, 1)


def check_shift(shift: int, window: int) -> None:
    """Raise ValueError unless windows can be shifted so.

    Args:
        shift: Tokens by which the windows are shifted.
        window: Edge length of a window.

    Raises:
        ValueError: The shift is negative, or a window or more.
    """
    if not 0 <= shift < window:
        raise ValueError(
            f'shift must be from 0 to window - 1, {window - 1} here; got {shift}.'
        )


def _cut_mask(height: int, width: int, window: int, shift: int, like: Tensor) -> Tensor:
    """What to add where a window of the rolled map joins two ends, (R, N, N)."""

    def band(length: int) -> Tensor:
        place = torch.arange(length, device=like.device)
        return (place >= length - window).int() + (place >= length - shift).int()

    bands = 3 * band(height)[:, None] + band(width)  # (H, W)
    grid = (height // window, width // window)
    bands = partition_regions(bands[None, :, :, None], grid)[0]  # (R, N, 1)
    return MASKED * (bands != bands.transpose(1, 2)).to(like.dtype)
