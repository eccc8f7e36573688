"""Deformable attention: a small network predicts where keys are sampled (DAT)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    POINT,
    AttentionMap,
    key_centers,
    shared_key_weights,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_choice,
    check_heads,
    check_positive,
    project,
)
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.ops import deformable_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.attention import full_attention
from mmsparse.ops.deformable import (
    displacements,
    lookup_bias,
    query_axis_v2022,
    query_axis_v2023,
    sample_features,
    sampling_locations_v2022,
    sampling_locations_v2023,
)
from mmsparse.ops.regions import pad_to_size
from mmsparse.registry import MODELS

# The two releases differ in the sampling locations of the keys, and in the coordinates
# of the queries.
FORMULATIONS = {
    'v2022': (sampling_locations_v2022, query_axis_v2022),
    'v2023': (sampling_locations_v2023, query_axis_v2023),
}
BIASES = ('table', 'fixed', 'log_cpb', 'depthwise', 'none')


@MODELS.register_module()
class DeformableAttention2d(nn.Module):
    """Attention of all queries to keys that are sampled at learned locations.

    Keys start from a regular grid, one for ``stride`` x ``stride`` queries. A small
    network predicts their offsets from the queries, for each group of channels.

    Papers: `DAT <https://arxiv.org/abs/2201.00520>`_, section 3.2;
    `DAT++ <https://arxiv.org/abs/2309.01430>`_. The two releases share names and shapes
    of weights, but not the arithmetic: ``formulation`` must be that of the weights.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        num_groups: Number of groups of heads that share sampling locations; divides
            ``num_heads``.
        stride: Queries between neighboring keys of the grid.
        offset_kernel: Kernel size of the convolution in the offset network.
        offset_range: If positive, the bound of an offset in halves of a key's cell. If
            negative, offsets are unbounded and locations stay on the feature map
            (``v2022``: squashed by tanh, ``v2023``: clamped). 0 bounds neither in
            ``v2022``, and removes the offsets in ``v2023``.
        formulation: ``v2022`` as in the release of DAT, ``v2023`` as in that of DAT++.
        bias: Position bias. ``table``: learned by displacement, interpolated;
            ``fixed``: learned for each pair of query and key; ``log_cpb``: a small
            network of the logarithm of the displacement; ``depthwise``: a convolution
            of the queries, added to the output; ``none``.
        map_size: Size of the feature map that the ``table`` or the ``fixed`` bias is
            made for, (H, W) or one number for both. It is resized for other feature
            maps, and when a bias of another size is loaded.
        use_offsets: If false, keys are the means of the cells, without ``bias``. The
            offset network remains, since the weights have it, but is frozen and unused.

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
        self.add_offsets, self.query_axis = FORMULATIONS[formulation]

        self.q = nn.Linear(in_channels, in_channels)
        self.k = nn.Linear(in_channels, in_channels)
        self.v = nn.Linear(in_channels, in_channels)
        self.proj = nn.Linear(in_channels, in_channels)
        by_cell = formulation == 'v2023' and offset_kernel == stride
        self.min_size = offset_kernel if by_cell else 1
        self.conv_offset = _offset_network(
            in_channels // num_groups,
            offset_kernel,
            stride,
            padding=0 if by_cell else offset_kernel // 2,
        ).requires_grad_(use_offsets)
        self._init_bias(in_channels, map_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q = project(self.q, channels_last(x))
        locations = self._locations(q)
        # Without the copy, a 1x1 convolution gives keys and values with strides that
        # torch's fused attention does not take.
        features = channels_last(self.sample(x, locations)).contiguous()
        k, v = project(self.k, features), project(self.v, features)
        out = self._attend(q, k, v, locations)
        if self.bias == 'depthwise':
            out = out + channels_last(self.lepe(channels_first(q)))
        return channels_first(project(self.proj, out))

    def sampling_locations(self, x: Tensor) -> Tensor:
        """Compute the sampling locations of the keys.

        Args:
            x: Input of the layer, (B, C, H, W).

        Returns:
            (B, groups, Hk, Wk, 2) as (y, x), -1 and +1 being the centers of the first
            and the last pixel; with some settings, locations may be off the feature
            map.
        """
        return self._locations(project(self.q, channels_last(x)))

    def reference_locations(self, x: Tensor) -> Tensor:
        """Compute the sampling locations that the keys would have without offsets.

        Args:
            x: Input of the layer, (B, C, H, W).

        Returns:
            (B, groups, Hk, Wk, 2), see :meth:`sampling_locations`.
        """
        offsets = self._offsets(project(self.q, channels_last(x)))
        return self.add_offsets(torch.zeros_like(offsets), self.offset_range)

    def sample(self, x: Tensor, locations: Tensor) -> Tensor:
        """Sample the features that are projected to keys and values.

        Args:
            x: Input of the layer, (B, C, H, W).
            locations: Result of :meth:`sampling_locations`.

        Returns:
            (B, C, Hk, Wk).
        """
        if self.use_offsets:
            return sample_features(x, locations)
        cell = tuple(min(self.stride, length) for length in x.shape[-2:])
        return F.avg_pool2d(x, cell)

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap, ...]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for the heads of each group.
        """
        # 1. All queries share the sampled keys.
        q = project(self.q, channels_last(x))  # (B, H, W, C)
        locations = self._locations(q)
        features = channels_last(self.sample(x, locations))
        k = project(self.k, features).flatten(1, 2)  # (B, Hk * Wk, C)
        # 2. Attention of the given queries, with their share of the bias.
        weights, index = shared_key_weights(
            q.flatten(1, 2)[:, queries],
            k,
            self.num_heads,
            (x.shape[1] // self.num_heads) ** -0.5,
            self._query_bias(queries, x, locations),
        )
        # 3. Each group of heads has keys at its own locations.
        keys, extent = self._key_centers(x, locations)
        groups = zip(weights.chunk(self.num_groups, 1), keys.unbind(1), strict=True)
        return tuple(
            AttentionMap(f'group {i}', group_weights, index, group_keys, extent)
            for i, (group_weights, group_keys) in enumerate(groups, start=1)
        )

    def _query_bias(
        self, queries: Tensor, x: Tensor, locations: Tensor
    ) -> Tensor | None:
        """Return the bias of some queries, (B, heads, n, Hk * Wk)."""
        size = x.shape[-2:]
        if self.bias == 'fixed':
            num_keys = locations.shape[2] * locations.shape[3]
            return self._resized_bias(size[0] * size[1], num_keys)[:, queries]
        if self.bias not in ('table', 'log_cpb'):
            return None
        rows, columns = (self.query_axis(length, locations) for length in size)
        y, x = rows[queries // size[1]], columns[queries % size[1]]
        points = torch.stack([y, x], dim=-1)[:, None]  # (n, 1, 2)
        displacement = (points - locations.flatten(2, 3).unsqueeze(2)) / 2
        if self.bias == 'table':
            return lookup_bias(self.relative_position_bias_table, displacement)
        return self._network_bias(displacement, x.dtype)

    def _key_centers(
        self, x: Tensor, locations: Tensor
    ) -> tuple[Tensor, tuple[float, float]]:
        """Return centers, (B, groups, Hk * Wk, 2), and extent of the keys, in cells."""
        size = x.shape[-2:]
        if not self.use_offsets:
            cell = tuple(min(self.stride, length) for length in size)
            counts = tuple(n // step for n, step in zip(size, cell, strict=True))
            centers = key_centers(counts, x, cell)
            return centers.expand(*locations.shape[:2], -1, -1), cell
        last = locations.new_tensor(size) - 1
        return (locations.flatten(2, 3) + 1) / 2 * last + 0.5, POINT

    def _locations(self, q: Tensor) -> Tensor:
        return self.add_offsets(self._offsets(q), self.offset_range)

    def _offsets(self, q: Tensor) -> Tensor:
        """(B, H, W, C) to (B, groups, Hk, Wk, 2)."""
        q = channels_first(pad_to_size(q, self.min_size))
        groups = q.unflatten(1, (self.num_groups, -1)).flatten(0, 1)
        offsets = self.conv_offset(groups)  # (B * groups, 2, Hk, Wk)
        offsets = offsets.unflatten(0, (q.shape[0], -1)).permute(0, 1, 3, 4, 2)
        return offsets if self.use_offsets else torch.zeros_like(offsets)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, locations: Tensor) -> Tensor:
        height, width = q.shape[1:3]
        axes = self.query_axis(height, locations), self.query_axis(width, locations)
        if self.bias == 'table':
            return deformable_attention(
                q, k, v, locations, self.relative_position_bias_table, axes
            )
        bias = None
        if self.bias == 'fixed':
            bias = self._resized_bias(height * width, k.shape[1] * k.shape[2])
        elif self.bias == 'log_cpb':
            bias = self._network_bias(displacements(locations, axes), q.dtype)
        return full_attention(q, k, v, self.num_heads, bias)

    def _resized_bias(self, num_queries: int, num_keys: int) -> Tensor:
        """Return the fixed bias for a feature map, (heads, N, M)."""
        size = (num_queries, num_keys)
        if self.relative_position_bias_table.shape[1:] == size:
            return self.relative_position_bias_table
        return F.interpolate(
            self.relative_position_bias_table[None],
            size,
            mode='bilinear',
            align_corners=True,
        )[0]

    def _network_bias(self, displacement: Tensor, dtype: torch.dtype) -> Tensor:
        """Compute the bias of (B, groups, N, M, 2), (B, heads, N, M)."""
        distance = 8 * displacement  # -8 to 8 over the feature map, and log2(8) = 3
        scaled = distance.sign() * (1 + distance.abs()).log2() / 3
        bias = self.cpb_mlp(scaled.to(dtype))
        return bias.movedim(-1, 2).flatten(1, 2)  # (B, groups * heads / groups, N, M)

    def _init_bias(self, in_channels: int, map_size: int | tuple[int, int]) -> None:
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
    check_positive('stride', stride)
    check_positive('offset_kernel', offset_kernel)
    check_choice('formulation', formulation, FORMULATIONS)
    check_choice('bias', bias, BIASES)
