"""Window attention: plain (DAT's local blocks), shifted (Swin) and dilated windows."""

import torch
from torch import Tensor

from mmsparse.ops._cache import cached_by_size
from mmsparse.ops.attention import biased_attention
from mmsparse.ops.dilation import merge_phases, split_phases
from mmsparse.ops.regions import (
    Size,
    merge_by_head,
    partition_by_head,
    partition_regions,
)

# Added across the cut of a shifted window. The released models add -100: the weights
# are 0, too, but as denormal numbers of float32, with which an Intel processor computes
# matrix products 40 times and softmaxes 4 times as slowly (measured).
MASKED = -1000.0


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    window: int,
    shift: int = 0,
    backend: str = 'auto',
    dilation: int = 1,
) -> Tensor:
    """Attend from every token to the tokens of its window.

    With a shift, windows start ``shift`` tokens further down and right. A window that
    crosses the border then joins opposite ends of the feature map, which ``MASKED``
    separates.

    Args:
        q: Queries, (B, H, W, C); H and W are multiples of the window times the
            dilation.
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        bias: Added to the logits of every window, (heads, N, N) with N = window**2.
        window: Height and width of a window.
        shift: Shift of the windows in tokens, 0 to ``window`` - 1.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.
        dilation: Distance of neighboring tokens of a window, in whose gaps other
            windows are; also the unit of ``shift``.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The windows do not divide the feature map or the heads not C, the
            shift or the dilation is out of range, or ``backend`` is unknown or cannot
            compute it.

    Source: Swin Transformer, arXiv 2103.14030, section 3.2.
    """
    _check(q, window, shift, dilation)
    phases = (dilation, dilation)
    if dilation > 1:
        q, k, v = (split_phases(x, phases) for x in (q, k, v))
    height, width = q.shape[1:3]
    num_heads = len(bias)
    if shift:
        q, k, v = (x.roll((-shift, -shift), dims=(1, 2)) for x in (q, k, v))
        mask = _shift_mask(height, width, window, shift, bias.dtype, bias.device)
        bias = bias + mask[:, None]  # (R, heads, N, N)
    grid = (height // window, width // window)
    out = region_attention(q, k, v, grid, num_heads, bias, backend)
    if shift:
        out = out.roll((shift, shift), dims=(1, 2))
    return merge_phases(out, phases) if dilation > 1 else out


def region_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Size,
    num_heads: int,
    bias: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Attend from every token to the tokens of its region.

    Args:
        q: Queries, (B, H, W, C), a multiple of the grid.
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        grid: Number of regions, (rows, columns): R regions of N tokens.
        num_heads: Number of heads; divides C.
        bias: Added to the logits, (heads, N, N) in all regions or (R, heads, N, N);
            N may be 1 if it broadcasts. None adds nothing.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The grid does not divide the feature map or the heads not C, or
            ``backend`` is unknown or cannot compute it.
    """
    batch, height, width, _ = q.shape
    fold = (0, 1)  # Regions that share their bias are folded into the batch.
    if bias is not None and bias.ndim == 4:
        fold = (1, 2)  # Otherwise, they are folded into the heads.
        bias = bias.flatten(0, 1)  # (R * heads, N, N)
    q, k, v = (partition_by_head(x, grid, num_heads).flatten(*fold) for x in (q, k, v))
    out = biased_attention(q, k, v, bias, backend)
    out = out.reshape(batch, -1, num_heads, *out.shape[2:])  # (B, R, heads, N, D)
    return merge_by_head(out, grid, (height, width))


def window_bias(table: Tensor, window: int) -> Tensor:
    """Expand a table of relative positions to the pairs of tokens of a window.

    Args:
        table: One row for each (query minus key) down and across, row-major,
            ((2 * window - 1)**2, heads).
        window: Height and width of the window.

    Returns:
        (heads, N, N) with N = window**2, queries before keys.

    Source: Swin Transformer, arXiv 2103.14030, equation 4.
    """
    num_tokens = window**2
    bias = table.index_select(0, _pair_index(window, table.device))  # (N * N, heads)
    return bias.reshape(num_tokens, num_tokens, -1).permute(2, 0, 1)


@cached_by_size
def _pair_index(window: int, device: torch.device) -> Tensor:
    """Return the row of the table of every pair of query and key, (N * N,)."""
    token = torch.arange(window, device=device)
    step = token[:, None] - token + window - 1  # (query, key)
    span = 2 * window - 1
    index = span * step[:, None, :, None] + step[None, :, None, :]
    return index.flatten()


def _check(q: Tensor, window: int, shift: int, dilation: int) -> None:
    if dilation < 1:
        raise ValueError(f'dilation must be at least 1; got {dilation}.')
    height, width = q.shape[1:3]
    side = window * dilation
    if height % side or width % side:
        name = f'window={window}'
        if dilation > 1:
            name += f' times dilation={dilation}'
        raise ValueError(
            f'{name} must divide the feature map of {height}x{width}; pad it first '
            '(pad_to_multiple).'
        )
    check_shift(shift, window)


def check_shift(shift: int, window: int) -> None:
    """Raise ValueError unless the shift is smaller than the window.

    Args:
        shift: Shift of the windows in tokens.
        window: Height and width of a window.

    Raises:
        ValueError: The shift is negative, or at least the window.
    """
    if not 0 <= shift < window:
        raise ValueError(
            f'shift must be from 0 to window - 1, {window - 1} here; got {shift}.'
        )


@cached_by_size
def _shift_mask(
    height: int,
    width: int,
    window: int,
    shift: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return what is added where a rolled window joins two ends, (R, N, N)."""

    def band(length: int) -> Tensor:
        token = torch.arange(length, device=device)
        return (token >= length - window).int() + (token >= length - shift).int()

    bands = 3 * band(height)[:, None] + band(width)  # (H, W)
    grid = (height // window, width // window)
    bands = partition_regions(bands[None, :, :, None], grid)[0]  # (R, N, 1)
    return MASKED * (bands != bands.transpose(1, 2)).to(dtype)
