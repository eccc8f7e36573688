"""Attention to keys that are sampled where a small network says (DAT)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    POINT,
    AttentionMap,
    attend_shared_keys,
    grid_centers,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    Linear,
    channels_first,
    channels_last,
    check_heads,
)
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.ops import deformable_attention
from mmsparse.ops.deformable import (
    attend_map,
    cell_centers,
    displacements,
    lookup_bias,
    pixel_centers,
    positions_v2022,
    positions_v2023,
    sample_points,
)
from mmsparse.registry import MODELS

# What the two releases differ in: where keys are sampled, and where queries are.
FORMULATIONS = {
    'v2022': (positions_v2022, cell_centers),
    'v2023': (positions_v2023, pixel_centers),
}
BIASES = ('table', 'fixed', 'log_cpb', 'depthwise', 'none')


@MODELS.register_module()
class DeformableAttention2d(nn.Module):
    """Attention of all positions to one set of sampled keys a group of channels.

    The keys start from a regular grid, one for ``stride`` x ``stride`` positions, and
    move by offsets that a small network reads from the queries, as the picture demands.

    Papers: `DAT <https://arxiv.org/abs/2201.00520>`_, section 3.2;
    `DAT++ <https://arxiv.org/abs/2309.01430>`_. The two releases share names and shapes
    of weights, but not the arithmetic: ``formulation`` must be that of the weights.

    Args:
        in_channels: C of the map.
        num_heads: Number of heads; divides ``in_channels``.
        num_groups: Number of groups of heads that share their keys' positions; divides
            ``num_heads``.
        stride: Positions between neighboring keys of the grid.
        offset_kernel: Edge length of the convolution of the offset network.
        offset_range: If positive, the bound of an offset in halves of a key's cell. If
            negative, offsets are free and positions stay inside the map (``v2022``:
            squashed by tanh, ``v2023``: cut). 0 leaves everything free in ``v2022`` and
            takes the offsets away in ``v2023``.
        formulation: ``v2022`` as in the release of DAT, ``v2023`` as in that of DAT++.
        bias: What tells positions apart. ``table``: learned by displacement, read
            between the entries; ``fixed``: learned for each pair of query and key;
            ``log_cpb``: a small network of the displacement's logarithm;
            ``depthwise``: a convolution of the queries, added to the output; ``none``.
        map_size: Size of the map that the ``table`` or the ``fixed`` bias is made for,
            (H, W) or one number for both. Other maps stretch it; loading one of another
            size resizes it.
        use_offsets: If false, keys are the means of the cells, without ``bias``. The
            offset network stays, for the weights have it, but frozen and overruled.

    Raises:
        ValueError: An argument is unknown, out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        num_groups: int = 4,
        stride: int = 2,
        offset_kernel: int = 5,
        offset_range: float = -1,
        formulation: str = 'v2023',
        bias: str = 'table',
        map_size: int | tuple[int, int] = 14,
        use_offsets: bool = True,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        _check(num_heads, num_groups, stride, offset_kernel, formulation, bias)
        self.num_heads = num_heads
        self.num_groups = num_groups
        self.stride = stride
        self.offset_range = offset_range
        self.bias = bias if use_offsets else 'none'
        self.use_offsets = use_offsets
        self.place, self.query_axis = FORMULATIONS[formulation]

        self.q = Linear(in_channels, in_channels)
        self.k = Linear(in_channels, in_channels)
        self.v = Linear(in_channels, in_channels)
        self.proj = Linear(in_channels, in_channels)
        cells = formulation == 'v2023' and offset_kernel == stride
        self.least_size = offset_kernel if cells else 1
        self.conv_offset = _offset_network(
            in_channels // num_groups,
            offset_kernel,
            stride,
            padding=0 if cells else offset_kernel // 2,
        ).requires_grad_(use_offsets)
        self._add_bias(in_channels, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q = self.q(channels_last(x))
        positions = self._positions(q)
        features = channels_last(self.sample(x, positions))
        k, v = self.k(features), self.v(features)
        out = self._attend(q, k, v, positions)
        if self.bias == 'depthwise':
            out = out + channels_last(self.lepe(channels_first(q)))
        return channels_first(self.proj(out))

    def sampling_positions(self, x: Tensor) -> Tensor:
        """Tell where the keys of a map are sampled.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.

        Returns:
            (B, groups, Hk, Wk, 2) as (y, x), -1 and +1 being the centers of the first
            and the last pixel; some settings let positions leave the map.
        """
        return self._positions(self.q(channels_last(x)))

    def sample(self, x: Tensor, positions: Tensor) -> Tensor:
        """Read the features that keys and values are made of.

        Args:
            x: Map, (B, C, H, W).
            positions: What :meth:`sampling_positions` says.

        Returns:
            (B, C, Hk, Wk).
        """
        if self.use_offsets:
            return sample_points(x, positions)
        cell = tuple(min(self.stride, length) for length in x.shape[-2:])
        return F.avg_pool2d(x, cell)

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap, ...]:
        """Tell where queries look.

        Args:
            x: Map, (B, C, H, W), what the layer itself is given.
            queries: Positions of the map, counted row by row, (n,).

        Returns:
            What the heads of each group see.
        """
        q = self.q(channels_last(x))  # (B, H, W, C)
        positions = self._positions(q)
        features = self.sample(x, positions)
        k = self.k(channels_last(features)).flatten(1, 2)
        weights, rows = attend_shared_keys(
            q.flatten(1, 2)[:, queries],
            k,
            (x.shape[1] // self.num_heads) ** -0.5,
            self.num_heads,
            self._bias_of(queries, x.shape[-2:], positions),
        )
        keys, extent = self._key_cells(x, positions)
        groups = zip(weights.chunk(self.num_groups, 1), keys.unbind(1), strict=True)
        return tuple(
            AttentionMap(f'group {i}', share, rows, places, extent)
            for i, (share, places) in enumerate(groups, start=1)
        )

    def _bias_of(
        self, queries: Tensor, size: tuple[int, int], positions: Tensor
    ) -> Tensor | None:
        """What is added to the logits of some queries, (B, heads, n, Hk * Wk)."""
        if self.bias == 'fixed':
            num_keys = positions.shape[2] * positions.shape[3]
            return self._stretched(size[0] * size[1], num_keys)[:, queries]
        if self.bias not in ('table', 'log_cpb'):
            return None
        rows, columns = (self.query_axis(length, positions) for length in size)
        y, x = rows[queries // size[1]], columns[queries % size[1]]
        places = torch.stack([y, x], dim=-1)[:, None]
        displacement = (places - positions.flatten(2, 3).unsqueeze(2)) / 2
        if self.bias == 'table':
            return lookup_bias(self.relative_position_bias_table, displacement)
        return self._read_network(displacement)

    def _key_cells(
        self, x: Tensor, positions: Tensor
    ) -> tuple[Tensor, tuple[float, float]]:
        """The keys' places, (B, groups, Hk * Wk, 2), and their extent, in cells."""
        size = x.shape[-2:]
        if not self.use_offsets:
            cell = tuple(min(self.stride, length) for length in size)
            places = grid_centers(positions.shape[2:4], x, cell)
            return places.expand(*positions.shape[:2], -1, -1), cell
        last = positions.new_tensor(size) - 1
        return (positions.flatten(2, 3) + 1) / 2 * last + 0.5, POINT

    def _positions(self, q: Tensor) -> Tensor:
        bottom, right = (max(self.least_size - length, 0) for length in q.shape[1:3])
        q = channels_first(F.pad(q, (0, 0, 0, right, 0, bottom)))
        groups = q.unflatten(1, (self.num_groups, -1)).flatten(0, 1)
        offsets = self.conv_offset(groups)  # (B * groups, 2, Hk, Wk)
        offsets = offsets.unflatten(0, (q.shape[0], -1)).permute(0, 1, 3, 4, 2)
        if not self.use_offsets:
            offsets = torch.zeros_like(offsets)
        return self.place(offsets, self.offset_range)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
        height, width = q.shape[1:3]
        axes = self.query_axis(height, positions), self.query_axis(width, positions)
        if self.bias == 'table':
            return deformable_attention(
                q, k, v, positions, self.relative_position_bias_table, axes
            )
        bias = None
        if self.bias == 'fixed':
            bias = self._stretched(height * width, k.shape[1] * k.shape[2])
        elif self.bias == 'log_cpb':
            bias = self._read_network(displacements(positions, axes))
        return attend_map(q, k, v, self.num_heads, bias)

    def _stretched(self, num_queries: int, num_keys: int) -> Tensor:
        """The fixed bias, (heads, N, M)."""
        size = (num_queries, num_keys)
        if self.relative_position_bias_table.shape[1:] == size:
            return self.relative_position_bias_table
        return F.interpolate(
            self.relative_position_bias_table[None],
            size,
            mode='bilinear',
            align_corners=True,
        )[0]

    def _read_network(self, displacement: Tensor) -> Tensor:
        """The bias of (B, groups, N, M, 2), (B, heads, N, M)."""
        distance = 8 * displacement  # a map is 16 long, and log2(8) = 3
        scaled = distance.sign() * (1 + distance.abs()).log2() / 3
        bias = self.cpb_mlp(scaled.to(self.q.weight.dtype))
        return bias.movedim(-1, 2).flatten(1, 2)  # heads / groups beside the groups

    def _add_bias(self, in_channels: int, map_size: int | tuple[int, int]) -> None:
        height, width = (map_size, map_size) if isinstance(map_size, int) else map_size
        self.relative_position_bias_table = None
        if self.bias == 'table':
            shape = (2 * height - 1, 2 * width - 1)
            self.relative_position_bias_table = _table(self.num_heads, *shape)
        elif self.bias == 'fixed':
            if self.stride > min(height, width):
                raise ValueError(
                    f"stride must be at most map_size={map_size} with bias='fixed'; "
                    f'got {self.stride}.'
                )
            num_keys = (height // self.stride) * (width // self.stride)
            shape = (height * width, num_keys)
            self.relative_position_bias_table = _table(self.num_heads, *shape)
        elif self.bias == 'log_cpb':
            heads_per_group = self.num_heads // self.num_groups
            self.cpb_mlp = nn.Sequential(
                nn.Linear(2, 32),
                nn.ReLU(),
                nn.Linear(32, heads_per_group, bias=False),
            )
        elif self.bias == 'depthwise':
            self.lepe = DepthwiseConv2d(in_channels, kernel_size=3)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        table = state_dict.get(f'{prefix}relative_position_bias_table')
        if table is not None and self.relative_position_bias_table is not None:
            size = self.relative_position_bias_table.shape[1:]
            if table.ndim == 3 and table.shape[1:] != size:
                table = F.interpolate(table[None], size, mode='bicubic')[0]
                state_dict[f'{prefix}relative_position_bias_table'] = table
        super()._load_from_state_dict(state_dict, prefix, *args)


def _offset_network(
    channels: int, kernel_size: int, stride: int, padding: int
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels),
        LayerNorm2d(channels, eps=1e-5),
        nn.GELU(),
        nn.Conv2d(channels, 2, kernel_size=1, bias=False),
    )


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.01))


def _check(
    num_heads: int,
    num_groups: int,
    stride: int,
    offset_kernel: int,
    formulation: str,
    bias: str,
) -> None:
    if num_groups < 1 or num_heads % num_groups:
        raise ValueError(
            f'num_groups must divide num_heads={num_heads}; got {num_groups}.'
        )
    if stride < 1:
        raise ValueError(f'stride must be at least 1; got {stride}.')
    if offset_kernel < 1:
        raise ValueError(f'offset_kernel must be at least 1; got {offset_kernel}.')
    if formulation not in FORMULATIONS:
        raise ValueError(
            f'formulation must be one of {sorted(FORMULATIONS)}; got {formulation!r}.'
        )
    if bias not in BIASES:
        raise ValueError(f'bias must be one of {BIASES}; got {bias!r}.')
