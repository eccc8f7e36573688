"""mmcv's attention modules, their weights as they are, without waits and waste."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor

from mmsparse.models.layers.multi_scale_deformable_attention import sample_and_sum
from mmsparse.ops.pyramid import sampling_points


class SelfAttention(MultiheadAttention):
    """mmcv's attention of tokens to each other, by the fused kernels.

    mmcv asks torch for the mean weights, which forbids them.
    """

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Let tokens attend to each other.

        Args:
            query: Tokens, (B, N, C).
            query_pos: Their positions, (B, N, C).
            attn_mask: True where a token does not see another, (N, N).
            key_padding_mask: True for tokens that none sees, (B, N).
            **unused: What mmdet's layers pass to all of their parts.

        Returns:
            The sum with the tokens, (B, N, C).
        """
        placed = query if query_pos is None else query + query_pos
        placed, tokens = placed.transpose(0, 1), query.transpose(0, 1)
        out, _ = self.attn(
            placed,
            placed,
            tokens,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=False,
        )
        return query + self.dropout_layer(self.proj_drop(out.transpose(0, 1)))


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's multi-scale deformable attention, with the sizes of the maps as numbers.

    mmcv compares sizes on the GPU, and so waits for it.
    """

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_sizes: Sequence[tuple[int, int]],
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """Let tokens read the maps at points around their references.

        Args:
            query: Tokens, (B, K, C).
            value: The tokens of all maps, (B, N, C).
            reference_points: (x, y), or boxes (cx, cy, w, h), from 0 to 1 over every
                level with its padding, (B, K, levels, 2 or 4).
            spatial_shapes: Height and width of every level, (levels, 2).
            level_sizes: The same as numbers.
            query_pos: Positions of the tokens, (B, K, C).
            key_padding_mask: True for padding in the maps, (B, N).
            **unused: What mmdet's layers pass to all of their parts.

        Returns:
            The sum with the tokens, (B, K, C).
        """
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        value = value.unflatten(-1, (self.num_heads, -1))
        placed = query if query_pos is None else query + query_pos
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(placed).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(placed).unflatten(-1, (self.num_heads, -1))
        weights = weights.float().softmax(-1).unflatten(-1, grid[1:])
        # Positions need float32; the operator wants one type for all.
        out = sample_and_sum(
            value.float(),
            sampling_points(reference_points, offsets.float(), spatial_shapes),
            weights,
            level_sizes,
            spatial_shapes,
        )
        return query + self.dropout(self.output_proj(out.to(value.dtype)))
