"""Encoder of deformable attention that updates selected tokens only."""

from functools import partial
from typing import Any, NamedTuple

import torch
from mmdet.models.layers import (
    DeformableDetrTransformerEncoder,
    DeformableDetrTransformerEncoderLayer,
)
from mmengine.model import ModuleList
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmsparse.models.detectors.detr_attention import DeformableAttention
from mmsparse.ops.tokens import TokenSelection, gather_tokens, scatter_tokens


class KeptInputs(NamedTuple):
    """Inputs of the encoder at the tokens that any layer keeps, best first."""

    tokens: Tensor  # (B, K, C)
    positions: Tensor  # position embedding, (B, K, C)
    reference_points: Tensor  # (x, y) over the padded levels, (B, K, levels, 2)


class SelectiveEncoder(DeformableDetrTransformerEncoder):
    """Layers that update the same selected tokens; the others keep their values.

    Each layer samples the current values of all tokens. Arguments are those of mmdet's
    encoder.

    Paper: `Sparse DETR <https://arxiv.org/abs/2111.14330>`_, section 3.
    """

    def _init_layers(self) -> None:
        self.layers = ModuleList(self._build_layer() for _ in range(self.num_layers))
        self.embed_dims = self.layers[0].embed_dims

    def _build_layer(self) -> nn.Module:
        return SelectiveEncoderLayer(**self.layer_cfg)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Tensor | None,
        centers: Tensor,
        valid_ratios: Tensor,
        selection: TokenSelection,
        **levels: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Update the selected tokens.

        Args:
            query: Tokens, (B, N, C).
            query_pos: Position embedding of the tokens, (B, N, C).
            key_padding_mask: True for padding, (B, N); None for no padding.
            centers: Cell centers (x, y) of all tokens within their images, (B, N, 2).
            valid_ratios: Fraction of the width and height of every level that is not
                padding, (B, levels, 2).
            selection: The tokens that all layers keep.
            **levels: ``spatial_shapes`` and ``level_sizes`` for
                :class:`DeformableAttention`.

        Returns:
            All tokens, (B, N, C), and the selected ones after every layer, (B, K, C)
            each. The latter include tokens beyond those that a smaller image keeps,
            which are updated, but not among all tokens.
        """
        rows, (written,) = selection.rows, selection.written
        inputs = gather_inputs(query, query_pos, centers, valid_ratios, rows)
        memory, kept, states = query, inputs.tokens, []
        for i, layer in enumerate(self.layers):
            kept = self._wrapped(i, layer)(
                kept,
                inputs.positions,
                value=memory,
                key_padding_mask=key_padding_mask,
                reference_points=inputs.reference_points,
                **levels,
            )
            states.append(kept)
            # Unlike in Focus-DETR, the next layer samples what this one has written.
            values = kept
            if written is not None:
                values = torch.where(written[..., None], kept, inputs.tokens)
            memory = scatter_tokens(memory, rows, values)
        return memory, states

    def _wrapped(self, i: int, layer: nn.Module) -> Any:
        """Checkpoint the activations of the first ``num_cp`` layers in training."""
        if self.training and i < self.num_cp:
            return partial(checkpoint, layer, use_reentrant=False)
        return layer


class SelectiveEncoderLayer(DeformableDetrTransformerEncoderLayer):
    """mmdet's layer on the kept tokens; same arguments."""

    num_object_tokens = 0  # that attend to each other

    def _init_layers(self) -> None:
        super()._init_layers()
        self.self_attn = DeformableAttention(**self.self_attn_cfg)

    def forward(self, query: Tensor, query_pos: Tensor, **attention: Any) -> Tensor:
        """Update the kept tokens.

        Args:
            query: Tokens, (B, K, C).
            query_pos: Position embedding of the tokens, (B, K, C).
            **attention: The other arguments of :class:`DeformableAttention`.

        Returns:
            (B, K, C).
        """
        query = self.self_attn(query, query_pos=query_pos, **attention)
        query = self.ffn(self.norms[0](query))
        return self.norms[1](query)


def gather_inputs(
    query: Tensor,
    query_pos: Tensor,
    centers: Tensor,
    valid_ratios: Tensor,
    rows: Tensor,
) -> KeptInputs:
    """Gather the inputs of the encoder at some tokens.

    Args:
        query: Tokens, (B, N, C).
        query_pos: Position embedding of the tokens, (B, N, C).
        centers: Cell centers (x, y) of all tokens within their images, (B, N, 2).
        valid_ratios: Fraction of the width and height of every level that is not
            padding, (B, levels, 2).
        rows: Indices of the tokens, (B, K).

    Returns:
        Tokens, positions and reference points.
    """
    tokens, positions, points = (
        gather_tokens(x, rows) for x in (query, query_pos, centers)
    )
    return KeptInputs(tokens, positions, points[:, :, None] * valid_ratios[:, None])
