"""Supervision of a token selector by what the decoder attends to (Sparse DETR).

The decoder attention map (DAM) is the attention that every token receives from all
queries in all decoder layers. Only after decoder and encoder have run it is known, so
the token selector learns to predict which tokens have the most.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.ops.sampling import attention_on_cells
from mmsparse.ops.tokens import TokenSelection, mark_tokens


class DecoderAttentionMap:
    """Sum of the attention of decoder layers on every token, without gradient.

    Args:
        level_sizes: Height and width of every level.
        exact: Count the cells that are sampled. Otherwise they are displaced by half a
            cell, as released.
    """

    def __init__(
        self, level_sizes: Sequence[tuple[int, int]], exact: bool = False
    ) -> None:
        self.level_sizes = level_sizes
        self.exact = exact
        self.total: Tensor | None = None  # (B, N)

    @torch.no_grad()
    def add(self, points: Tensor, weights: Tensor) -> None:
        """Add the attention of a layer.

        Args:
            points: Sampling locations, (x, y) from 0 to 1 over each level,
                (B, Q, heads, levels, points, 2).
            weights: (B, Q, heads, levels, points).
        """
        added = attention_on_cells(
            points, weights, self.level_sizes, displaced=not self.exact
        )
        self.total = added if self.total is None else self.total + added


class AttentionMapLoss(nn.Module):
    """Binary cross-entropy of token logits; the most attended tokens are positive.

    Paper: `Sparse DETR <https://arxiv.org/abs/2111.14330>`_, section 3. As many tokens
    of an image are positive as its encoder keeps. The loss is averaged over all tokens;
    as released, padding counts as negative, with the least logit of the batch.

    Args:
        loss_weight: Weight of the loss.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(
        self,
        logits: Tensor,
        attention_map: Tensor,
        padding: Tensor | None,
        selection: TokenSelection,
    ) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits: Of the token selector, padding included, (B, N).
            attention_map: Attention on every token, (B, N).
            padding: True for padding, (B, N); None for no padding.
            selection: The selected tokens, for their numbers.

        Returns:
            A scalar.
        """
        targets = self.targets(attention_map, padding, selection)
        loss = F.binary_cross_entropy_with_logits(
            fill_padding(logits, padding), targets.to(logits.dtype)
        )
        return self.loss_weight * loss

    @staticmethod
    def targets(
        attention_map: Tensor, padding: Tensor | None, selection: TokenSelection
    ) -> Tensor:
        """Mark the most attended tokens, as many in each image as it keeps.

        Args:
            attention_map: Attention on every token, (B, N).
            padding: True for padding, (B, N); None for no padding.
            selection: The selected tokens, for their numbers.

        Returns:
            True for positives, (B, N).
        """
        if padding is not None:
            attention_map = attention_map.masked_fill(padding, float('-inf'))
        rows = attention_map.topk(selection.rows.shape[1]).indices
        return mark_tokens(rows, attention_map.shape[1], selection.written[0])


def fill_padding(logits: Tensor, padding: Tensor | None) -> Tensor:
    """Replace the logits of padding by the least logit of the batch, (B, N).

    The gradient of the padding goes into the least logit, as released.
    """
    if padding is None:
        return logits
    return torch.where(padding, logits.min(), logits)


def kept_attention(
    attention_map: Tensor, rows: Tensor, level_sizes: Sequence[tuple[int, int]]
) -> Tensor:
    """Compute the share of the attention that is on kept tokens.

    Args:
        attention_map: Attention on every token, (B, N).
        rows: Indices of the kept tokens, (B, K).
        level_sizes: Height and width of every level.

    Returns:
        From 0 to 1, over all levels, then for each level, (1 + levels, B); NaN for a
        level without attention.
    """
    lengths = [height * width for height, width in level_sizes]
    kept = mark_tokens(rows, attention_map.shape[1])
    on_kept, on_all = (
        torch.stack([x.sum(1), *(level.sum(1) for level in x.split(lengths, dim=1))])
        for x in (attention_map * kept, attention_map)
    )
    return on_kept / on_all
