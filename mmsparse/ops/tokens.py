"""Selection of the tokens that an encoder updates (Sparse DETR, Focus-DETR)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class TokenSelection(NamedTuple):
    """The tokens that the layers of an encoder keep, best first.

    The tokens of a layer are the first of one sorted list; one entry is that of all
    layers. Images of a batch keep different numbers of them; masks mark those of an
    image, and are None where they would be all True.

    Args:
        rows: Indices of the tokens that any layer keeps, (B, K).
        scores: Their logits, (B, K); -inf for padding.
        kept: K_i, the number of rows that each layer keeps.
        eligible: For each layer, rows that may be object tokens, (B, K_i).
        written: For each layer, rows that the layer updates, (B, K_i).
    """

    rows: Tensor
    scores: Tensor
    kept: tuple[int, ...]
    eligible: tuple[Tensor | None, ...]
    written: tuple[Tensor | None, ...]

    @property
    def own(self) -> Tensor | None:
        """Rows that any layer updates, (B, K); None for all."""
        return self.written[self.kept.index(max(self.kept))]


def select_tokens(
    scores: Tensor,
    padding: Tensor | None,
    num_valid: Tensor,
    keep_ratio: float,
    cascade: Sequence[float],
    per_image: bool = False,
) -> TokenSelection:
    """Rank all tokens by score and select those that each layer keeps.

    Args:
        scores: Logits, (B, N).
        padding: True for tokens that are padding, (B, N); None for none.
        num_valid: Number of tokens of every image without padding, (B,), on the CPU,
            where it is known without waiting for a GPU.
        keep_ratio: Share of an image's tokens that are selected, in (0, 1].
        cascade: Share of the selected tokens that each layer keeps, in (0, 1]; one
            number if all layers keep the same.
        per_image: Keep a share of every image's own tokens. Otherwise all images keep
            as many rows as the image with the most selected tokens, and the others
            update no more of them than they have selected.

    Returns:
        The selection. Padding is ranked last and never updated.

    Raises:
        ValueError: A layer would keep no token of an image.

    Source: Sparse DETR, arXiv 2111.14330; Focus-DETR, arXiv 2307.12612, section 3.
    """
    # 1. On the CPU, count the rows of every layer: shapes must not wait for a GPU.
    selected = selected_counts(num_valid, keep_ratio)  # (B,)
    layer_shares = [layer_counts(selected, share) for share in cascade]
    kept = tuple(int(counts.max()) for counts in layer_shares)
    fewest = (
        min(int(counts.min()) for counts in layer_shares) if per_image else min(kept)
    )
    if fewest < 1:
        raise ValueError(
            f'keep_ratio={keep_ratio} and cascade={tuple(cascade)} keep none of the '
            f'{num_valid.tolist()} tokens in some layer; raise them or enlarge the '
            'images.'
        )
    # 2. Rank padding last, and count the same on the device of the scores, for masks.
    num_valid_here = num_valid
    if padding is not None:
        scores = scores.masked_fill(padding, float('-inf'))
        num_valid_here = (~padding).sum(1)
    selected_here = selected_counts(num_valid_here, keep_ratio)
    # 3. Mask the rows of each layer that an image with fewer tokens does not own.
    eligible, written = [], []
    for share, counts, rows in zip(cascade, layer_shares, kept, strict=True):
        if per_image:
            own = _row_mask(layer_counts(selected_here, share), counts, rows)
            eligible.append(own)
            written.append(own)
        else:
            eligible.append(_row_mask(num_valid_here, num_valid, rows))
            written.append(_row_mask(selected_here, selected, rows))
    # 4. Sort once: each layer keeps the first rows of the same list.
    best = scores.topk(max(kept))
    return TokenSelection(
        best.indices, best.values, kept, tuple(eligible), tuple(written)
    )


def selected_counts(num_valid: Tensor, keep_ratio: float) -> Tensor:
    """Count the selected tokens of images.

    Args:
        num_valid: Number of their tokens without padding, (B,).
        keep_ratio: Share of them that is selected, in (0, 1].

    Returns:
        (B,), at least 1; rounded down in float32, plus 1.
    """
    return torch.minimum((num_valid.float() * keep_ratio).int() + 1, num_valid)


def layer_counts(foreground: Tensor, share: float) -> Tensor:
    """Count the tokens that a layer keeps.

    Args:
        foreground: Number of foreground tokens, (B,).
        share: Share of them that the layer keeps, in (0, 1].

    Returns:
        (B,), rounded down in float32.
    """
    return (foreground.float() * share).int()


def _row_mask(counts: Tensor, counts_on_cpu: Tensor, rows: int) -> Tensor | None:
    """Mark the first ``counts`` of the rows, (B, rows); None where that is all."""
    if int(counts_on_cpu.min()) >= rows:
        return None
    return torch.arange(rows, device=counts.device) < counts[:, None]


def kept_by_layer(selection: TokenSelection, num_tokens: int) -> Tensor:
    """Mark the tokens that each layer updates.

    Args:
        selection: Selected tokens.
        num_tokens: N, the number of all tokens.

    Returns:
        True for tokens that the layer updates, (B, layers, N).
    """
    layers = []
    for count, written in zip(selection.kept, selection.written, strict=True):
        rows = selection.rows[:, :count]
        layers.append(mark_tokens(rows, num_tokens, written))
    return torch.stack(layers, dim=1)


def mark_tokens(rows: Tensor, num_tokens: int, which: Tensor | None = None) -> Tensor:
    """Mark tokens that are given by their indices.

    Args:
        rows: Indices without duplicates, (B, K).
        num_tokens: N, the number of all tokens.
        which: True for the rows to mark, (B, K); None for all.

    Returns:
        True for marked tokens, (B, N).
    """
    marks = torch.ones_like(rows, dtype=torch.bool) if which is None else which
    tokens = marks.new_zeros(rows.shape[0], num_tokens)
    return tokens.scatter(1, rows, marks)


def logit_product(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score object tokens by a product of logits, as the release of Focus-DETR does.

    Args:
        class_logits: (B, K, classes).
        foreground: Foreground logits, (B, K).

    Returns:
        (B, K). Two negative logits give a positive score.
    """
    return class_logits.amax(-1) * foreground


def probability_product(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score object tokens by a product of probabilities, as in the paper.

    Args:
        class_logits: (B, K, classes).
        foreground: Foreground logits, (B, K).

    Returns:
        (B, K), from 0 to 1.

    Source: Focus-DETR, arXiv 2307.12612, section 3.
    """
    return class_logits.amax(-1).sigmoid() * foreground.sigmoid()


def class_score(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score object tokens by their best class alone, an ablation of Focus-DETR.

    Args:
        class_logits: (B, K, classes).
        foreground: Not used.

    Returns:
        (B, K).
    """
    return class_logits.amax(-1)


def foreground_score(class_logits: Tensor, foreground: Tensor) -> Tensor:
    """Score object tokens by their foreground alone, an ablation of Focus-DETR.

    Args:
        class_logits: Not used.
        foreground: Foreground logits, (B, K).

    Returns:
        (B, K).
    """
    return foreground


def gather_tokens(x: Tensor, rows: Tensor) -> Tensor:
    """Gather rows of every sample.

    Args:
        x: (B, N, ...).
        rows: Indices, (B, K).

    Returns:
        (B, K, ...).
    """
    gathered = x.flatten(0, 1).index_select(0, _flat_rows(rows, x.shape[1]))
    return gathered.unflatten(0, rows.shape)


def scatter_tokens(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Replace rows of every sample.

    Args:
        x: (B, N, ...).
        rows: Indices without duplicates, (B, K).
        values: New values of these rows, (B, K, ...).

    Returns:
        A copy of ``x`` with the rows replaced.
    """
    flat = x.flatten(0, 1).index_copy(
        0, _flat_rows(rows, x.shape[1]), values.flatten(0, 1).to(x.dtype)
    )
    return flat.unflatten(0, x.shape[:2])


def _flat_rows(rows: Tensor, length: int) -> Tensor:
    """Return the indices in the samples concatenated, (B * K,)."""
    first = length * torch.arange(rows.shape[0], device=rows.device)
    return (rows + first[:, None]).flatten()
