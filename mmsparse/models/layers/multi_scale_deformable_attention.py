"""Deformable DETR's attention, on one map."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import POINT, AttentionMap
from mmsparse.models.layers.common import channels_first, channels_last, check_heads
from mmsparse.registry import MODELS


@MODELS.register_module()
class MultiScaleDeformableAttention2d(nn.Module):
    """Weighted mean of values at points that every position chooses for itself.

    Offsets and weights are linear in the query; there are no keys. The operator is
    mmcv's: its CUDA kernel where that is compiled, its PyTorch twin elsewhere.

    Paper: `Deformable DETR <https://arxiv.org/abs/2010.04159>`_, equation 2; as a
    backbone's block in the appendix of `DAT <https://arxiv.org/abs/2201.00520>`_.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        num_points: Number of points of every position and head.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self, in_channels: int, num_heads: int = 8, num_points: int = 16
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if num_points < 1:
            raise ValueError(f'num_points must be at least 1; got {num_points}.')
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
        # Positions need float32; the operator wants one type for all.
        out = sample_and_sum(
            value.float(), points.unsqueeze(3), weights.unsqueeze(3), [size]
        )
        return channels_first(self.output_proj(out.to(x.dtype)).unflatten(1, size))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap, ...]:
        """Tell where queries look.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.
            queries: Positions of the map, counted row by row, (n,).

        Returns:
            What each head sees; some of the points may lie off the map.
        """
        size = x.shape[-2:]
        points, weights = self._points(channels_last(x).flatten(1, 2), size)
        cells = (points * _as_xy(size, x.device)).flip(-1)
        keys = cells.transpose(1, 2).flatten(2, 3)  # (B, heads, H * W * points, 2)
        weights = weights[:, queries].transpose(1, 2).unsqueeze(2)
        own = torch.arange(self.num_points, device=x.device)
        rows = queries[:, None] * self.num_points + own
        return tuple(
            AttentionMap(f'head {i}', share, rows.expand(len(x), -1, -1), places, POINT)
            for i, (share, places) in enumerate(
                zip(weights.unbind(1), keys.unbind(1), strict=True), start=1
            )
        )

    def _points(self, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """What the positions of a map, (B, H * W, C), sample, and by what weights.

        (x, y) from 0 to 1 over the map, (B, H * W, heads, points, 2), and (B, H * W,
        heads, points), both in single precision.
        """
        grid = (self.num_heads, self.num_points)
        offsets = self.sampling_offsets(x).unflatten(-1, (*grid, 2)).float()
        weights = self.attention_weights(x).unflatten(-1, grid).float().softmax(-1)
        centers = _cell_centers(size, x.device)
        return centers + offsets / _as_xy(size, x.device), weights

    def _initialize(self) -> None:
        """Points on rays, one direction a head; equal weights; the paper's, A.4."""
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
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    sizes: Sequence[tuple[int, int]],
    shapes: Tensor | None = None,
) -> Tensor:
    """Weighted sum of values at points of one or several maps.

    Args:
        value: The cells of all maps, row-major, (B, N, heads, D).
        points: (x, y) from 0 to 1 over each map, (B, Q, heads, levels, points, 2).
        weights: (B, Q, heads, levels, points).
        sizes: Height and width of every map.
        shapes: ``sizes`` as a tensor of integers beside ``value``, (levels, 2), where
            there is one; making it waits for a GPU.

    Returns:
        (B, Q, heads * D).
    """
    # Here, not above: mmcv may come without compiled operators.
    from mmcv.ops import get_compiling_cuda_version
    from mmcv.ops import multi_scale_deform_attn as operators

    if not value.is_cuda or get_compiling_cuda_version() == 'not available':
        return operators.multi_scale_deformable_attn_pytorch(
            value, sizes, points, weights
        )
    if shapes is None:
        shapes = torch.tensor(sizes, device=value.device)
    areas = shapes.prod(1)
    return operators.MultiScaleDeformableAttnFunction.apply(
        value, shapes, areas.cumsum(0) - areas, points, weights, len(value)
    )


def _cell_centers(size: tuple[int, int], device: torch.device) -> Tensor:
    """(x, y) of the center of every cell, (H * W, 1, 1, 2)."""
    rows, columns = ((torch.arange(n, device=device) + 0.5) / n for n in size)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing='ij')[::-1], dim=-1)
    return grid.reshape(-1, 1, 1, 2)


def _as_xy(size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.tensor((size[1], size[0]), device=device)
