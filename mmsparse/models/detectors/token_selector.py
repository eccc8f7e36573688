"""Token selectors: predict a logit for every token of the pyramid, which ranks it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.common import check_choice
from mmsparse.ops._precision import no_autocast

GLOBAL_POOLS = ('all', 'valid')
LARGEST_ALPHA = 0.3  # at initialization


class TokenSelector(nn.Module):
    """Logits of all tokens by one scorer, half of whose channels are averaged.

    Paper: `Sparse DETR <https://arxiv.org/abs/2111.14330>`_, section 3. The average is
    over the tokens of all levels.

    Args:
        embed_dims: C of the tokens, a multiple of 4.
        global_pool: Tokens to average over: ``all``, or only the ``valid`` ones.

    Raises:
        ValueError: ``global_pool`` is unknown.
    """

    def __init__(self, embed_dims: int, global_pool: str = 'all') -> None:
        super().__init__()
        check_choice('global_pool', global_pool, GLOBAL_POOLS)
        self.global_pool = global_pool
        self.layer1 = nn.Sequential(
            nn.LayerNorm(embed_dims), nn.Linear(embed_dims, embed_dims), nn.GELU()
        )
        self.layer2 = nn.Sequential(
            nn.Linear(embed_dims, embed_dims // 2),
            nn.GELU(),
            nn.Linear(embed_dims // 2, embed_dims // 4),
            nn.GELU(),
            nn.Linear(embed_dims // 4, 1),
        )

    def init_weights(self) -> None:
        """Initialize as the released code does."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(
        self,
        tokens: Tensor,
        level_sizes: Sequence[tuple[int, int]],
        ignored: Tensor | None = None,
    ) -> Tensor:
        """Score the tokens of all levels in float32.

        Args:
            tokens: (B, N, C).
            level_sizes: Height and width of every level.
            ignored: True for invalid tokens, (B, N).

        Returns:
            Logits, (B, N).
        """
        with no_autocast(tokens):
            return self._score_levels(tokens.float(), level_sizes, ignored)

    def _score_levels(
        self,
        tokens: Tensor,
        level_sizes: Sequence[tuple[int, int]],
        ignored: Tensor | None,
    ) -> Tensor:
        return self._score(tokens, ignored)

    def _score(self, tokens: Tensor, ignored: Tensor | None) -> Tensor:
        """Score tokens that are averaged together, (B, n, C), as logits of (B, n)."""
        if self.global_pool == 'all':
            ignored = None
        local, pooled = self.layer1(tokens).chunk(2, dim=-1)
        mean = _mean(pooled, ignored).expand_as(pooled)
        return self.layer2(torch.cat([local, mean], dim=-1)).squeeze(-1)


class ForegroundTokenSelector(TokenSelector):
    """Foreground logits of all tokens, where coarse levels guide finer ones.

    Paper: `Focus-DETR <https://arxiv.org/abs/2307.12612>`_, section 3. All levels share
    one scorer, half of whose channels are averaged over the level. The logits of a
    level, resized and multiplied by a learned alpha, scale the tokens of the next finer
    level.

    Args:
        embed_dims: C of the tokens, a multiple of 4.
        num_levels: Number of levels.
        global_pool: Cells to average over: ``all``, or only the ``valid`` ones.
        top_down: Whether coarse levels guide finer ones; otherwise there is no alpha.

    Raises:
        ValueError: ``global_pool`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_levels: int,
        global_pool: str = 'all',
        top_down: bool = True,
    ) -> None:
        super().__init__(embed_dims, global_pool)
        # From the coarsest level down: alpha[0] scales the second coarsest.
        self.alpha = nn.Parameter(torch.empty(num_levels - 1)) if top_down else None
        self.init_weights()

    def init_weights(self) -> None:
        """Initialize as the released code does."""
        if self.alpha is not None:
            nn.init.uniform_(self.alpha, -LARGEST_ALPHA, LARGEST_ALPHA)
        super().init_weights()

    def _score_levels(
        self,
        tokens: Tensor,
        level_sizes: Sequence[tuple[int, int]],
        ignored: Tensor | None,
    ) -> Tensor:
        lengths = [height * width for height, width in level_sizes]
        levels = tokens.split(lengths, dim=1)
        masks: Sequence[Tensor | None] = [None] * len(levels)
        if ignored is not None:
            masks = ignored.split(lengths, dim=1)
        if self.alpha is None:
            logits = [self._score(*level) for level in zip(levels, masks, strict=True)]
            return torch.cat(logits, dim=1)
        logits = [self._score(levels[-1], masks[-1])]  # coarse to fine
        for i, alpha in enumerate(self.alpha):
            finer = len(levels) - 2 - i
            coarse = logits[-1].unflatten(1, level_sizes[finer + 1]).unsqueeze(1)
            guide = F.interpolate(
                coarse, level_sizes[finer], mode='bilinear', align_corners=True
            )
            guided = levels[finer] * (1 + alpha * guide.flatten(1)[..., None])
            logits.append(self._score(guided, masks[finer]))
        return torch.cat(logits[::-1], dim=1)


def _mean(tokens: Tensor, ignored: Tensor | None) -> Tensor:
    if ignored is None:
        return tokens.mean(1, keepdim=True)
    total = tokens.masked_fill(ignored[..., None], 0).sum(1, keepdim=True)
    return total / (~ignored).sum(1).clamp(min=1)[:, None, None]
