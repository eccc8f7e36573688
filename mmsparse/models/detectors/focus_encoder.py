"""Encoder of Focus-DETR: deformable attention for the selected tokens only."""

from collections.abc import Callable
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from torch import Tensor, nn

from mmsparse.models.detectors.detr_attention import SelfAttention
from mmsparse.models.detectors.selective_encoder import (
    SelectiveEncoder,
    SelectiveEncoderLayer,
    gather_inputs,
)
from mmsparse.models.layers.common import check_choice
from mmsparse.ops._precision import no_autocast
from mmsparse.ops.tokens import (
    TokenSelection,
    class_score,
    foreground_score,
    gather_tokens,
    logit_product,
    probability_product,
    scatter_tokens,
)

VALUE_SOURCES = ('input', 'current')
OBJECT_SCORES = {
    'logit': logit_product,
    'prob': probability_product,
    'class': class_score,
    'foreground': foreground_score,
}


class FocusEncoder(SelectiveEncoder):
    """Layers that update fewer and fewer tokens; the others keep their values.

    Args:
        num_object_tokens: Number of tokens per layer that attend to each other; 0
            disables this attention.
        value_source: Values of the deformable attention: the ``input`` in all layers,
            or the ``current`` tokens.
        object_score: Product of the ``logit`` or of the ``prob`` of foreground and
            class; or the ``class`` or the ``foreground`` alone.
        **arguments: Those of mmdet's encoder.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        num_object_tokens: int = 300,
        value_source: str = 'input',
        object_score: str = 'logit',
        **arguments: Any,
    ) -> None:
        check_choice('value_source', value_source, VALUE_SOURCES)
        check_choice('object_score', object_score, OBJECT_SCORES)
        if num_object_tokens < 0:
            raise ValueError(
                f'num_object_tokens must be at least 0; got {num_object_tokens}.'
            )
        self.num_object_tokens = num_object_tokens
        self.value_source = value_source
        self.object_score = OBJECT_SCORES[object_score]
        super().__init__(**arguments)

    def _build_layer(self) -> nn.Module:
        return FocusEncoderLayer(self.num_object_tokens, **self.layer_cfg)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Tensor | None,
        centers: Tensor,
        valid_ratios: Tensor,
        selection: TokenSelection,
        class_head: Callable[[Tensor], Tensor],
        **levels: Any,
    ) -> Tensor:
        """Update the selected tokens.

        Args:
            query: Tokens, (B, N, C).
            query_pos: Position embedding of the tokens, (B, N, C).
            key_padding_mask: True for padding, (B, N); None for no padding.
            centers: Cell centers (x, y) of all tokens within their images, (B, N, 2).
            valid_ratios: Fraction of the width and height of every level that is not
                padding, (B, levels, 2).
            selection: The tokens that each layer keeps.
            class_head: Maps (B, K, C) to class logits, which rank object tokens. It
                gets no gradient from here.
            **levels: ``spatial_shapes`` and ``level_sizes`` for
                :class:`DeformableAttention`.

        Returns:
            All tokens, (B, N, C).
        """
        # 1. Gather the tokens that any layer keeps, best first: (B, K, ...).
        rows = selection.rows
        kept, positions, reference_points = gather_inputs(
            query, query_pos, centers, valid_ratios, rows
        )
        memory = query
        for i, layer in enumerate(self.layers):
            # 2. Layer i works on the first of them: (B, K_i, ...).
            count, written = selection.kept[i], selection.written[i]
            inputs = kept[:, :count]
            # 3. Rank them as objects, without gradient, and update them.
            outputs = self._wrapped(i, layer)(
                inputs,
                positions[:, :count],
                self._score_objects(inputs, selection.scores[:, :count], class_head),
                eligible=selection.eligible[i],
                value=memory,
                key_padding_mask=key_padding_mask,
                reference_points=reference_points[:, :count],
                **levels,
            )
            # 4. Discard updates beyond the tokens that this image keeps.
            if written is not None:
                outputs = torch.where(written[..., None], outputs, inputs)
            kept = torch.cat([outputs, kept[:, count:]], dim=1)
            # 5. The next layer samples the updated tokens, if values are current.
            if self.value_source == 'current':
                memory = scatter_tokens(memory, rows, kept)
        # 6. Scatter the kept tokens back among the others.
        return (
            memory
            if self.value_source == 'current'
            else scatter_tokens(query, rows, kept)
        )

    @torch.no_grad()
    def _score_objects(
        self, tokens: Tensor, foreground: Tensor, class_head: Callable[[Tensor], Tensor]
    ) -> Tensor:
        with no_autocast(tokens):
            return self.object_score(class_head(tokens.float()), foreground)


class FocusEncoderLayer(SelectiveEncoderLayer):
    """Attention among object tokens, then deformable attention of the kept tokens.

    Args:
        num_object_tokens: Number of object tokens; 0 disables their attention.
        **arguments: Those of mmdet's layer.
    """

    def __init__(self, num_object_tokens: int, **arguments: Any) -> None:
        self.num_object_tokens = num_object_tokens
        super().__init__(**arguments)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.num_object_tokens:
            self.token_attn = SelfAttention(
                self.embed_dims, self.self_attn.num_heads, batch_first=True
            )
            self.token_norm = build_norm_layer(self.norm_cfg, self.embed_dims)[1]

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        object_scores: Tensor,
        eligible: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """Update the kept tokens.

        Args:
            query: Tokens, (B, K, C).
            query_pos: Position embedding of the tokens, (B, K, C).
            object_scores: Scores that rank them as objects, (B, K).
            eligible: True for tokens that may be objects, (B, K); None for all.
            **attention: The other arguments of :class:`DeformableAttention`.

        Returns:
            (B, K, C).
        """
        if self.num_object_tokens:
            query = self._attend_objects(query, query_pos, object_scores, eligible)
        return super().forward(query, query_pos, **attention)

    def choose_objects(
        self, object_scores: Tensor, eligible: Tensor | None = None
    ) -> Tensor:
        """Choose the object tokens among the kept tokens.

        Args:
            object_scores: (B, K).
            eligible: True for tokens that may be objects, (B, K); None for all.

        Returns:
            Their indices among the kept tokens, best first, (B, n). Ineligible tokens
            come last.
        """
        if eligible is not None:
            object_scores = object_scores.masked_fill(~eligible, float('-inf'))
        count = min(self.num_object_tokens, object_scores.shape[1])
        return object_scores.topk(count).indices

    def _attend_objects(
        self,
        query: Tensor,
        query_pos: Tensor,
        object_scores: Tensor,
        eligible: Tensor | None,
    ) -> Tensor:
        rows = self.choose_objects(object_scores, eligible)
        ignored = None if eligible is None else ~eligible.gather(1, rows)
        objects = self.token_attn(
            gather_tokens(query, rows),
            query_pos=gather_tokens(query_pos, rows),
            key_padding_mask=ignored,
        )
        return scatter_tokens(query, rows, self.token_norm(objects))
