"""Attention maps of the Swin, ViT, PVT and DETR layers of other libraries.

mmsparse's layers compute their attention maps themselves. An adapter does it for a
layer of mmdet, mmpretrain, mmseg or timm, from the inputs of one call. :data:`ADAPTERS`
names the layers, so that none of these libraries has to be installed.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    own_key_weights,
    shared_key_weights,
)
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import Size, pad_to_multiple, partition_regions
from mmsparse.ops.windows import MASKED


class HostAttention(ABC):
    """A self-attention layer of another library, with the inputs of one call.

    Args:
        layer: The layer.
        call: Arguments of its ``forward`` by name.
        grid: Height and width of the feature map that tokens come from, for layers
            that are not given it.
    """

    x: Tensor  # the layer's input as a feature map, (B, C, H, W)

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        self.layer = layer

    @abstractmethod
    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: The layer's input, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads.
        """

    @classmethod
    def supports(cls, layer: nn.Module) -> bool:
        """Return whether the adapter knows this variant of its layer."""
        return True


class ShiftedWindows(HostAttention):
    """Window attention of the Swin Transformer of mmdet, mmseg and mmpretrain.

    The padding of a feature map takes part in attention, so keys may be beyond it.
    """

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        super().__init__(layer, call, grid)
        self.x = _to_map(call['query'], call['hw_shape'])
        self.attention, shift = layer.w_msa, layer.shift_size
        if min(call['hw_shape']) <= layer.window_size:  # mmpretrain for classification
            shift *= getattr(layer, 'pad_small_map', True)
        self.window, self.shift = (layer.window_size,) * 2, (shift,) * 2

    @classmethod
    def supports(cls, layer: nn.Module) -> bool:
        """Return whether the layer has a table of biases, unlike Swin V2."""
        return hasattr(layer.w_msa, 'relative_position_bias_table')

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries, see :class:`HostAttention`."""
        attention = self.attention
        padded = pad_to_multiple(channels_last(x), self.window)
        size, area = padded.shape[1:3], math.prod(self.window)
        q, k, _ = attention.qkv(padded.flatten(1, 2)).chunk(3, dim=-1)
        # 1. Where each query is in the padded map, in which window, and where in it.
        at = queries // x.shape[-1] * size[1] + queries % x.shape[-1]
        cells = self._windows(self._rolled(x.shape[-2:], size, x.device))  # (R, N)
        place = cells.flatten().argsort()[at]
        window, inner = place // area, place % area
        # 2. Its keys, and which of them come from another end of the feature map.
        bands = self._windows(self._bands(size, x.device))
        cut = bands[window] != bands[window, inner][:, None]  # (n, N)
        table = attention.relative_position_bias_table
        bias = table[attention.relative_position_index[inner]].permute(2, 0, 1)
        # 3. Attention to these keys.
        index = cells[window]
        weights = own_key_weights(
            q[:, at],
            k[:, index],
            attention.num_heads,
            attention.scale,
            bias + MASKED * cut,
        )
        index = index.expand(len(x), -1, -1)
        keys = key_centers(size, x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, index, keys),)

    def _rolled(self, size: Size, padded: Size, device: torch.device) -> Tensor:
        """Return which cell of the padded map comes where before it is partitioned."""
        cells = torch.arange(math.prod(padded), device=device).view(padded)
        return cells.roll([-step for step in self.shift], dims=(0, 1))

    def _bands(self, size: Size, device: torch.device) -> Tensor:
        """Number the parts of a rolled map between which nothing is attended to."""
        rows, columns = (
            (token >= len(token) - window).int() + (token >= len(token) - shift).int()
            for token, window, shift in zip(
                (torch.arange(length, device=device) for length in size),
                self.window,
                self.shift,
                strict=True,
            )
        )
        return 3 * rows[:, None] + columns

    def _windows(self, x: Tensor) -> Tensor:
        """Partition (H, W) into windows, (R, N)."""
        grid = tuple(n // w for n, w in zip(x.shape, self.window, strict=True))
        return partition_regions(x[None, :, :, None], grid)[0, :, :, 0]


class ShiftedWindowsOfTimm(ShiftedWindows):
    """Window attention of timm's Swin Transformer, in a block."""

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        HostAttention.__init__(self, layer, call, grid)
        self.x = channels_first(layer.norm1(call['x']))
        self.attention = layer.attn
        self.window, self.shift = layer.window_size, layer.shift_size

    @classmethod
    def supports(cls, layer: nn.Module) -> bool:
        """Return True."""
        return True

    def _rolled(self, size: Size, padded: Size, device: torch.device) -> Tensor:
        # timm rolls first, and pads the result.
        cells = torch.arange(math.prod(padded), device=device).view(padded)
        height, width = size
        inside = cells[:height, :width].roll([-step for step in self.shift], (0, 1))
        cells[:height, :width] = inside.clone()
        return cells


class PlainTokens(HostAttention):
    """Full attention of the Vision Transformers of mmpretrain and timm.

    Attention to tokens without a position (class, registers) is left out, and the rest
    is scaled to a sum of 1.
    """

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        super().__init__(layer, call, grid)
        self.tokens = call['x']
        self.first = self.tokens.shape[1] - math.prod(grid)  # with a position
        if self.first < 0:
            raise ValueError(
                f'tokens must be those of the last convolution, {grid[0]}x{grid[1]}; '
                f'got {self.tokens.shape[1]}.'
            )
        self.x = _to_map(self.tokens[:, self.first :], grid)

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries, see :class:`HostAttention`."""
        heads = self.layer.num_heads
        q, k, _ = self.layer.qkv(self.tokens).chunk(3, dim=-1)
        q = self._normalize('q_norm', q[:, self.first + queries])
        k = self._normalize('k_norm', k)
        scale = (q.shape[-1] // heads) ** -0.5
        weights, _ = shared_key_weights(q, k, heads, scale)
        weights = weights[..., self.first :]
        return _shared_map(weights / weights.sum(-1, keepdim=True), x.shape[-2:])

    def _normalize(self, name: str, x: Tensor) -> Tensor:
        """Normalize queries or keys per head, if timm's layer does."""
        norm = getattr(self.layer, name, nn.Identity())
        return norm(x.unflatten(-1, (self.layer.num_heads, -1))).flatten(2)


class TokensWithPositions(HostAttention):
    """Full attention of torch, as in DETR's encoder and mmseg's Vision Transformer."""

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        super().__init__(layer, call, grid)
        self.call = call
        tokens = call['query'] if layer.batch_first else call['query'].transpose(0, 1)
        self.first = tokens.shape[1] - math.prod(grid)
        self.x = _to_map(tokens[:, self.first :], grid)

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries, see :class:`HostAttention`."""
        weights = called_weights(self.layer, self.call, self.first + queries)
        weights = weights[..., self.first :]
        return _shared_map(weights / weights.sum(-1, keepdim=True), x.shape[-2:])


class ReducedTokens(HostAttention):
    """Spatial-reduction attention of mmdet's PVT and mmseg's MiT."""

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        super().__init__(layer, call, grid)
        self.x = _to_map(call['x'], call['hw_shape'])

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries, see :class:`HostAttention`."""
        reduced = self._reduce(x)
        weights = self._weights(_to_tokens(x)[:, queries], self._normalize(reduced))
        return _shared_map(weights, reduced.shape[-2:], self._extent(x, reduced))

    def _reduce(self, x: Tensor) -> Tensor:
        return self.layer.sr(x) if self.layer.sr_ratio > 1 else x

    def _normalize(self, reduced: Tensor) -> Tensor:
        tokens = _to_tokens(reduced)
        return self.layer.norm(tokens) if self.layer.sr_ratio > 1 else tokens

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        return torch_weights(self.layer.attn, query, key)

    def _extent(self, x: Tensor, reduced: Tensor) -> tuple[float, float]:
        return (self.layer.sr_ratio,) * 2


class ReducedTokensOfTimm(ReducedTokens):
    """Spatial-reduction attention of timm's PVTv2, also with pooled keys."""

    def __init__(self, layer: nn.Module, call: Mapping[str, Any], grid: Size) -> None:
        HostAttention.__init__(self, layer, call, grid)
        self.x = _to_map(call['x'], call['feat_size'])

    def _reduce(self, x: Tensor) -> Tensor:
        x = x if self.layer.pool is None else self.layer.pool(x)
        return x if self.layer.sr is None else self.layer.sr(x)

    def _normalize(self, reduced: Tensor) -> Tensor:
        tokens = _to_tokens(reduced)
        tokens = tokens if self.layer.norm is None else self.layer.norm(tokens)
        return tokens if self.layer.act is None else self.layer.act(tokens)

    def _weights(self, query: Tensor, key: Tensor) -> Tensor:
        heads, scale = self.layer.num_heads, self.layer.scale
        q, (k, _) = self.layer.q(query), self.layer.kv(key).chunk(2, dim=-1)
        return shared_key_weights(q, k, heads, scale)[0]

    def _extent(self, x: Tensor, reduced: Tensor) -> tuple[float, float]:
        if self.layer.pool is None:
            return self.layer.sr.stride if self.layer.sr is not None else (1, 1)
        height, width = reduced.shape[-2:]
        return x.shape[-2] / height, x.shape[-1] / width


ADAPTERS: dict[str, type[HostAttention]] = {
    'mmdet.models.backbones.swin.ShiftWindowMSA': ShiftedWindows,
    'mmseg.models.backbones.swin.ShiftWindowMSA': ShiftedWindows,
    'mmpretrain.models.utils.attention.ShiftWindowMSA': ShiftedWindows,
    'timm.models.swin_transformer.SwinTransformerBlock': ShiftedWindowsOfTimm,
    'mmpretrain.models.utils.attention.MultiheadAttention': PlainTokens,
    'timm.layers.attention.Attention': PlainTokens,
    'mmdet.models.backbones.pvt.SpatialReductionAttention': ReducedTokens,
    'mmseg.models.backbones.mit.EfficientMultiheadAttention': ReducedTokens,
    'timm.models.pvt_v2.Attention': ReducedTokensOfTimm,
    'mmcv.cnn.bricks.transformer.MultiheadAttention': TokensWithPositions,
}
SUPPORTED_HOSTS = (
    'Swin (V1), ViT, PVT and MiT layers of mmdet, mmpretrain, mmseg and timm (PVTv2)'
)


def find_adapter(layer: nn.Module) -> type[HostAttention] | None:
    """Return the adapter of a layer or of a class it is derived from, if any."""
    for cls in type(layer).__mro__:
        adapter = ADAPTERS.get(f'{cls.__module__}.{cls.__qualname__}')
        if adapter is not None:
            return adapter if adapter.supports(layer) else None
    return None


def name_arguments(
    layer: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call of a layer by name, tensors without history."""
    bound = inspect.signature(type(layer).forward).bind(layer, *args, **kwargs)
    return {
        name: value.detach() if isinstance(value, Tensor) else value
        for name, value in bound.arguments.items()
    }


def called_weights(
    layer: nn.Module, call: Mapping[str, Any], queries: Tensor | None = None
) -> Tensor:
    """Compute the weights of a call of mmcv's ``MultiheadAttention``.

    Args:
        layer: The layer.
        call: Arguments of its ``forward`` by name.
        queries: Indices of the queries, (n,); all if None.

    Returns:
        (B, heads, n, keys); sums to 1, with 0 for masked keys.
    """
    query, positions = call['query'], call.get('query_pos')
    key, key_positions = call.get('key'), call.get('key_pos')
    key = query if key is None else key
    if key_positions is None and positions is not None:
        key_positions = positions if positions.shape == key.shape else None
    query = query if positions is None else query + positions
    key = key if key_positions is None else key + key_positions
    if not layer.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    query = query if queries is None else query[:, queries]
    mask, bias = call.get('key_padding_mask'), None
    if mask is not None:
        bias = torch.zeros(mask.shape, device=key.device)
        bias = bias.masked_fill(mask.bool(), -torch.inf)[:, None, None]
    return torch_weights(layer.attn, query, key, bias)


def torch_weights(
    attention: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the weights of torch's attention for every head.

    Args:
        attention: The layer.
        query: Its queries, (B, n, C).
        key: Its keys, (B, M, C).
        bias: Added to the logits, broadcasts to (B, heads, n, M).

    Returns:
        (B, heads, n, M), sums to 1.
    """
    biases = (None, None)
    if attention.in_proj_bias is not None:
        biases = attention.in_proj_bias.chunk(3)[:2]
    matrices = attention.in_proj_weight.chunk(3)[:2]
    q, k = (
        F.linear(x, matrix, offset)
        for x, matrix, offset in zip((query, key), matrices, biases, strict=True)
    )
    scale = attention.head_dim**-0.5
    return shared_key_weights(q, k, attention.num_heads, scale, bias)[0]


def _to_map(tokens: Tensor, size: Size) -> Tensor:
    """View tokens, (B, H * W, C), as (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(-1, tuple(size))


def _to_tokens(x: Tensor) -> Tensor:
    """View (B, C, H, W) as tokens, (B, H * W, C)."""
    return x.flatten(2).transpose(1, 2)


def _shared_map(
    weights: Tensor, size: Size, extent: tuple[float, float] = (1, 1)
) -> tuple[AttentionMap]:
    """Return the map of queries that share all keys; weights are (B, heads, n, M)."""
    batch, _, count, num_keys = weights.shape
    index = torch.arange(num_keys, device=weights.device).expand(batch, count, -1)
    keys = key_centers(size, weights, extent).expand(batch, -1, -1)
    return (AttentionMap('', weights, index, keys, extent),)
