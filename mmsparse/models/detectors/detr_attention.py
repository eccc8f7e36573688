"""mmcv's attention modules, same weights, with fused kernels and no GPU sync."""

from collections.abc import Callable, Sequence
from typing import Any

from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor

from mmsparse.models.layers.multi_scale_deformable_attention import sample_and_sum
from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.pyramid import sampling_points


class SelfAttention(MultiheadAttention):
    """mmcv's multi-head self-attention, computed by torch's fused kernels.

    mmcv requests the mean attention weights, which rules these kernels out. It also
    keeps the ``dropout`` of a layer as the default of all layers that are built later.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault('dropout_layer', dict(type='Dropout', drop_prob=0.0))
        super().__init__(*arguments, **options)

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
    """mmcv's multi-scale deformable attention with ``batch_first``, for any GPU.

    mmcv compares the sizes of the levels on the GPU and waits for the result, fails on
    a GPU that its operator is not compiled for, and in bfloat16 on all.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        level_sizes: Sequence[tuple[int, int]] | None = None,
        observe: Callable[[Tensor, Tensor], None] | None = None,
        **unused: Any,
    ) -> Tensor:
        """Sample the feature maps around the reference points of every token.

        Args:
            query: Tokens, (B, K, C).
            key: Not used.
            value: The tokens of all levels, (B, N, C); ``query`` if None.
            identity: What the result is added to, (B, K, C); ``query`` if None.
            query_pos: Position embedding of the tokens, (B, K, C).
            key_padding_mask: True for padding, (B, N).
            reference_points: (x, y) or boxes (cx, cy, w, h), from 0 to 1 over every
                level including its padding, (B, K, levels, 2 or 4).
            spatial_shapes: Height and width of every level, (levels, 2).
            level_start_index: Not used.
            level_sizes: ``spatial_shapes`` as integers, if they are known.
            observe: Called with sampling locations, (x, y) from 0 to 1 over each level,
                (B, K, heads, levels, points, 2), and weights,
                (B, K, heads, levels, points).
            **unused: Other arguments of mmdet's layers.

        Returns:
            The residual sum, (B, K, C).
        """
        identity = query if identity is None else identity
        value = self.value_proj(query if value is None else value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0)
        q = query if query_pos is None else query + query_pos
        grid = (self.num_heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(q).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(q).unflatten(-1, (self.num_heads, -1))
        # Locations need float32 whatever the values are.
        precise = precise_dtype(value)
        points = sampling_points(
            reference_points, offsets.to(precise), spatial_shapes
        )  # (B, K, heads, levels, points, 2)
        weights = weights.to(precise).softmax(-1).unflatten(-1, grid[1:])
        if observe is not None:
            observe(points, weights)
        out = sample_and_sum(
            value.unflatten(-1, (self.num_heads, -1)),  # (B, N, heads, D)
            points,
            weights,
            spatial_shapes if level_sizes is None else level_sizes,
        )
        return identity + self.dropout(self.output_proj(out))
