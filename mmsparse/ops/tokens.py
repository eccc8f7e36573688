"""Choosing the tokens that an encoder works on (Focus-DETR)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenSelection(NamedTuple):
    """The tokens that the layers of an encoder keep, best first.

    What a layer keeps is the beginning of one sorted list. Pictures of a batch need
    different numbers of tokens; masks say which of the rows count, and are None where
    all do.

    Args:
        rows: Indices of the tokens that any layer keeps, (B, K).
        scores: Their foreground logits, (B, K); -inf for padding.
        kept: K_i, the number of rows that each layer keeps.
        eligible: For each layer, rows that may be object tokens, (B, K_i).
        written: For each layer, rows whose update is kept, (B, K_i).
    """

    rows: Tensor
    scores: Tensor
    kept: tuple[int, ...]
    eligible: tuple[Tensor | None, ...]
    written: tuple[Tensor | None, ...]


def select_tokens(
    scores: Tensor,
    padding: Tensor | None,
    num_valid: Tensor,
    keep_ratio: float,
    cascade: Sequence[float],
    per_image: bool = False,
) -> TokenSelection:
    """Rank all tokens and choose how many of them each layer keeps.

    Args:
        scores: Foreground logits, (B, N).
        padding: True for the tokens that are padding, (B, N); None for no such tokens.
        num_valid: Number of the other tokens of every picture, (B,), on the CPU, where
            it is known without waiting for a GPU.
        keep_ratio: Part of a picture's tokens that are its foreground, in (0, 1].
        cascade: Part of the foreground that each layer keeps, in (0, 1].
        per_image: Let every picture keep its own part. Otherwise all keep as many rows
            as the picture with the largest foreground, and others write back no more
            than their foreground.

    Returns:
        The selection. Padding is ranked last and never counts.

    Raises:
        ValueError: A layer would keep no token of a picture.

    Source: Focus-DETR, arXiv 2307.12612, section 3.
    """
    foreground = foreground_counts(num_valid, keep_ratio)
    shares = [layer_counts(foreground, share) for share in cascade]
    kept = tuple(int(counts.max()) for counts in shares)
    fewest = min(int(counts.min()) for counts in shares) if per_image else min(kept)
    if fewest < 1:
        raise ValueError(
            f'keep_ratio={keep_ratio} and cascade={tuple(cascade)} leave no token of '
            f'{num_valid.tolist()} to some layer; raise them or enlarge the pictures.'
        )
    num_valid_here = num_valid
    if padding is not None:
        scores = scores.masked_fill(padding, float('-inf'))
        num_valid_here = (~padding).sum(1)
    foreground_here = foreground_counts(num_valid_here, keep_ratio)
    eligible, written = [], []
    for share, count, rows in zip(cascade, shares, kept, strict=True):
        if per_image:
            own = _row_mask(layer_counts(foreground_here, share), count, rows)
            eligible.append(own)
            written.append(own)
        else:
            eligible.append(_row_mask(num_valid_here, num_valid, rows))
            written.append(_row_mask(foreground_here, foreground, rows))
    best = scores.topk(max(kept))
    return TokenSelection(
        best.indices, best.values, kept, tuple(eligible), tuple(written)
    )


def foreground_counts(num_valid: Tensor, keep_ratio: float) -> Tensor:
    """Count the foreground tokens of pictures.

    Args:
        num_valid: Number of their tokens without padding, (B,).
        keep_ratio: Part of them that is foreground, in (0, 1].

    Returns:
        (B,), at least 1; rounded down in float32, plus 1.
    """
    return torch.minimum((num_valid.float() * keep_ratio).int() + 1, num_valid)


def layer_counts(foreground: Tensor, share: float) -> Tensor:
    """Count the tokens that a layer keeps.

    Args:
        foreground: Number of foreground tokens, (B,).
        share: Part of them, in (0, 1].

    Returns:
        (B,), rounded down in float32.
    """
    return (foreground.float() * share).int()


def _row_mask(counts: Tensor, counts_on_cpu: Tensor, rows: int) -> Tensor | None:
    if int(counts_on_cpu.min()) >= rows:
        return None
    return torch.arange(rows, device=counts.device) < counts[:, None]


def kept_by_layer(selection: TokenSelection, num_tokens: int) -> Tensor:
    """Mark the tokens that each layer keeps.

    Args:
        selection: What the layers keep.
        num_tokens: N, the number of all tokens.

    Returns:
        True for tokens that the layer updates, (B, layers, N).
    """
    layers = []
    for count, written in zip(selection.kept, selection.written, strict=True):
        rows = selection.rows[:, :count]
        kept = torch.ones_like(rows, dtype=torch.bool) if written is None else written
        tokens = torch.zeros(
            rows.shape[0], num_tokens, dtype=torch.bool, device=rows.device
        )
        layers.append(tokens.scatter(1, rows, kept))
    return torch.stack(layers, dim=1)


def logit_product(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score tokens as objects by a product of logits, as Focus-DETR was released.

    Args:
        class_logits: (B, K, classes).
        foreground: Foreground logits, (B, K).

    Returns:
        (B, K). Two negative logits give a positive score.
    """
    return class_logits.amax(-1) * foreground


def probability_product(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score tokens as objects by a product of probabilities, as in the paper.

    Args:
        class_logits: (B, K, classes).
        foreground: Foreground logits, (B, K).

    Returns:
        (B, K), from 0 to 1.

    Source: Focus-DETR, arXiv 2307.12612, section 3.
    """
    return class_logits.amax(-1).sigmoid() * foreground.sigmoid()


def gather_tokens(x: Tensor, rows: Tensor) -> Tensor:
    """Read rows of every sample.

    Args:
        x: (B, N, ...).
        rows: Indices, (B, K).

    Returns:
        (B, K, ...).
    """
    taken = x.flatten(0, 1).index_select(0, _flat_rows(rows, x.shape[1]))
    return taken.unflatten(0, rows.shape)


def scatter_tokens(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Replace rows of every sample.

    Args:
        x: (B, N, ...).
        rows: Indices, each but once, (B, K).
        values: What stands there then, (B, K, ...).

    Returns:
        A copy of ``x`` with the rows replaced.
    """
    flat = x.flatten(0, 1).index_copy(
        0, _flat_rows(rows, x.shape[1]), values.flatten(0, 1).to(x.dtype)
    )
    return flat.unflatten(0, x.shape[:2])


def _flat_rows(rows: Tensor, length: int) -> Tensor:
    first = length * torch.arange(rows.shape[0], device=rows.device)
    return (rows + first[:, None]).flatten()
