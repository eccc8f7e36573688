"""mmcv's attention modules, same weights, with fused kernels and no GPU sync."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor

from mmsparse.models.layers.multi_scale_deformable_attention import sample_and_sum
from mmsparse.ops.pyramid import sampling_points


class SelfAttention(MultiheadAttention):
    """mmcv's multi-head self-attention, computed by torch's fused kernels.

    mmcv requests the mean attention weights, which rules these kernels out.
    """

    def forward(
        self,
        query: Tensor,  # (B, N, C)
        query_pos: Tensor | None = None,  # (B, N, C)
        attn_mask: Tensor | None = None,  # True where tokens must not attend, (N, N)
        key_padding_mask: Tensor | None = None,  # True for padding, (B, N)
        **unused: Any,
    ) -> Tensor:
        """Attend among tokens; return the residual sum, (B, N, C)."""
        q = query if query_pos is None else query + query_pos
        q, v = q.transpose(0, 1), query.transpose(0, 1)  # (N, B, C)
        out, _ = self.attn(
            q,
            q,
            v,
            attn_mask=attn_mask,
            key_padding_mask=key_padding_mask,
            need_weights=False,
        )
        return query + self.dropout_layer(self.proj_drop(out.transpose(0, 1)))


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's multi-scale deformable attention, with level sizes as Python integers.

    mmcv compares the sizes on the GPU and has to wait for the result.
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
        """Sample the feature maps around the reference points of every token.

        Args:
            query: Tokens, (B, K, C).
            value: The tokens of all levels, (B, N, C).
            reference_points: (x, y) or boxes (cx, cy, w, h), from 0 to 1 over every
                level including its padding, (B, K, levels, 2 or 4).
            spatial_shapes: Height and width of every level, (levels, 2).
            level_sizes: ``spatial_shapes`` as integers.
            query_pos: Position embedding of the tokens, (B, K, C).
            key_padding_mask: True for padding, (B, N).
            **unused: Other arguments of mmdet's layers.

        Returns:
            The residual sum, (B, K, C).
        """
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        value = value.unflatten(-1, (self.num_heads, -1))  # (B, N, heads, D)
        q = query if query_pos is None else query + query_pos
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(q).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(q).unflatten(-1, (self.num_heads, -1))
        weights = weights.float().softmax(-1).unflatten(-1, grid[1:])
        # Sampling locations need float32, and the operator wants one dtype for all.
        out = sample_and_sum(
            value.float(),
            sampling_points(reference_points, offsets.float(), spatial_shapes),
            weights,
            level_sizes,
            spatial_shapes,
        )
        return query + self.dropout(self.output_proj(out.to(value.dtype)))
