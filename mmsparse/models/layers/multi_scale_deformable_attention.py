"""Multi-scale deformable attention (Deformable DETR), on one feature map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.models.layers.common import check_heads, check_positive
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops._precision import precise_dtype
from mmsparse.ops.multi_scale import multi_scale_deformable_attention
from mmsparse.ops.pyramid import (
    Size,
    axes_to_points,
    cell_centers,
    level_layout,
    sampling_points,
)
from mmsparse.ops.sampling import current_sampler
from mmsparse.ops.triton import is_preferred
from mmsparse.registry import MODELS


@MODELS.register_module()
class MultiScaleDeformableAttention2d(nn.Module):
    """Weighted mean of values at sampling locations that every query predicts.

    Offsets and weights are linear in the query; there are no keys. On a GPU mmcv's
    kernel computes it in float32 if it is compiled; otherwise
    :func:`mmsparse.ops.multi_scale_deformable_attention` does.

    Paper: `Deformable DETR <https://arxiv.org/abs/2010.04159>`_, equation 2; in a
    backbone, the appendix of `DAT <https://arxiv.org/abs/2201.00520>`_.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        num_points: Number of sampling locations of every query and head.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self, in_channels: int, num_heads: int = 8, num_points: int = 16
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        check_positive('num_points', num_points)
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling_offsets = nn.Linear(in_channels, 2 * num_heads * num_points)
        self.attention_weights = nn.Linear(in_channels, num_heads * num_points)
        self.value_proj = nn.Linear(in_channels, in_channels)
        self.output_proj = nn.Linear(in_channels, in_channels)
        self._initialize()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        size = x.shape[-2:]
        x = channels_last(x).flatten(1, 2)  # (B, H * W, C)
        value = self.value_proj(x).unflatten(-1, (self.num_heads, -1))
        points, weights = self._points(x, size)
        out = sample_and_sum(value, points, weights.unsqueeze(3), [size])
        return channels_first(self.output_proj(out).unflatten(1, size))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap, ...]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for each head; some of its keys may be off the feature
            map.
        """
        size = x.shape[-2:]
        # 1. Sampling locations of all queries are the keys, as (y, x) in cells.
        points, weights = self._points(channels_last(x).flatten(1, 2), size)
        cells = (points.squeeze(3) * points.new_tensor(size[::-1])).flip(-1)
        keys = cells.transpose(1, 2).flatten(2, 3)  # (B, heads, H * W * points, 2)
        # 2. A query attends to its own locations, which follow each other.
        weights = weights[:, queries].transpose(1, 2).unsqueeze(2)
        point = torch.arange(self.num_points, device=x.device)
        index = (queries[:, None] * self.num_points + point).expand(len(x), -1, -1)
        # 3. Every head has its own locations.
        heads = zip(weights.unbind(1), keys.unbind(1), strict=True)
        return tuple(
            AttentionMap(f'head {i}', head_weights, index, head_keys, POINT)
            for i, (head_weights, head_keys) in enumerate(heads, start=1)
        )

    def _points(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute sampling locations and attention weights of (B, H * W, C).

        Locations are (x, y) from 0 to 1 over the feature map, (B, H * W, heads, 1,
        points, 2), weights (B, H * W, heads, points), both in float32 at least.
        """
        grid, precise = (self.num_heads, self.num_points), precise_dtype(x)
        offsets = self.sampling_offsets(x).to(precise).unflatten(-1, (*grid, 2))
        weights = self.attention_weights(x).to(precise).unflatten(-1, grid).softmax(-1)
        rows, columns = (cell_centers(n, offsets) / n for n in size)
        centers = axes_to_points(rows, columns).flip(-1)  # (H, W, 2) as (x, y)
        points = sampling_points(
            centers.reshape(1, -1, 1, 2),
            offsets.unsqueeze(3),
            level_layout([size], x.device)[0],
        )
        return points, weights

    def _initialize(self) -> None:
        """Put the points on a ray for each head, with equal weights (appendix A.4)."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(-1, keepdim=True)  # on the border of a square
        steps = torch.arange(1, self.num_points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_((ray[:, None] * steps).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)


def sample_and_sum(
    value: Tensor, points: Tensor, weights: Tensor, sizes: Sequence[Size] | Tensor
) -> Tensor:
    """Sum values at sampling locations, by mmcv's CUDA kernel or mmsparse's op.

    Args:
        value: Values of the cells of all levels, row-major, (B, N, heads, D).
        points: Sampling locations, (x, y) from 0 to 1 over each level,
            (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).
        sizes: Height and width of every level, integers or a tensor on the device of
            ``value``, (levels, 2).

    Returns:
        (B, Q, heads * D), in the dtype of ``value``.
    """
    if _prefers_mmcv(value):
        return _by_mmcv(value, points, weights, sizes)
    out = multi_scale_deformable_attention(value, points, weights, sizes)
    return out.flatten(2)


def _by_mmcv(
    value: Tensor, points: Tensor, weights: Tensor, sizes: Sequence[Size] | Tensor
) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    shapes, starts = (x.long() for x in level_layout(sizes, value.device))
    out = MultiScaleDeformableAttnFunction.apply(
        value.float(), shapes, starts, points.float(), weights.float(), len(value)
    )
    return out.to(value.dtype)


def _prefers_mmcv(value: Tensor) -> bool:
    """Return whether mmcv's CUDA kernel is compiled, and no other suits better.

    It reads half precision as float32, since it needs locations in the dtype of the
    values: bfloat16 would be wrong by up to 1/512 of the feature map. And its gradient
    is not deterministic.
    """
    if not value.is_cuda or current_sampler() != 'grid_sample' or not has_mmcv_cuda():
        return False
    if not is_preferred(value):
        return True
    deterministic = torch.are_deterministic_algorithms_enabled()
    return value.dtype == torch.float32 and not deterministic


@torch.compiler.assume_constant_result  # the compiler cannot trace this import
def has_mmcv_cuda() -> bool:
    """Return whether mmcv is installed with its operators compiled for GPUs."""
    try:
        from mmcv.ops import get_compiling_cuda_version
    except ImportError:  # no mmcv, or without compiled operators
        return False
    return get_compiling_cuda_version() != 'not available'
