"""Spatial-reduction attention: all queries attend to a reduced feature map (PVT)."""

from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    shared_key_weights,
)
from mmsparse.models.layers.common import (
    check_heads,
    check_min_size,
    check_positive,
    project,
)
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.attention import full_attention
from mmsparse.registry import MODELS


class ReducedKeyAttention2d(nn.Module):
    """Attention of every token to keys and values from a reduced feature map.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        qkv_bias: Whether queries, keys and values have a bias.
        reduction: Module that reduces (B, C, H, W) to (B, C, H', W').

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``.
    """

    def __init__(
        self, in_channels: int, num_heads: int, qkv_bias: bool, reduction: nn.Module
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        self.num_heads = num_heads
        self.q = nn.Linear(in_channels, in_channels, bias=qkv_bias)
        self.reduction = reduction
        self.kv = nn.Linear(in_channels, 2 * in_channels, bias=qkv_bias)
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q = project(self.q, channels_last(x))  # (B, H, W, C)
        k, v = self._keys_and_values(x)
        out = full_attention(q, k, v, self.num_heads)
        return channels_first(project(self.proj, out))

    def key_extent(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the height and width of the cells that a key summarizes.

        Args:
            size: Height and width of the feature map.

        Returns:
            Height and width.

        Raises:
            NotImplementedError: A subclass must say.
        """
        raise NotImplementedError

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads.
        """
        q = project(self.q, channels_last(x)).flatten(1, 2)[:, queries]  # (B, n, C)
        k, _ = self._keys_and_values(x)
        scale = (x.shape[1] // self.num_heads) ** -0.5
        attention = shared_key_weights(q, k.flatten(1, 2), self.num_heads, scale)
        extent = self.key_extent(x.shape[-2:])
        keys = key_centers(k.shape[1:3], x, extent).expand(len(x), -1, -1)
        return (AttentionMap('', *attention, keys, extent),)

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to keys and values, (B, H', W', C) each."""
        return project(self.kv, channels_last(self.reduction(x))).chunk(2, dim=-1)


@MODELS.register_module()
class SpatialReductionAttention2d(ReducedKeyAttention2d):
    """Attention of every token to keys and values of square patches.

    A convolution with the stride of its kernel and a LayerNorm reduce the feature map.
    Rows and columns that do not fill a patch are left out.

    Paper: `Pyramid Vision Transformer <https://arxiv.org/abs/2102.12122>`_, section
    3.3.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        sr_ratio: Height and width of a patch, at most those of the feature map; 1 keeps
            every token as a key.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: An argument is out of range or does not divide, or a feature map is
            smaller than ``sr_ratio``.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        sr_ratio: int = 2,
        qkv_bias: bool = True,
    ) -> None:
        check_positive('sr_ratio', sr_ratio)
        reduction = nn.Identity()
        if sr_ratio > 1:
            reduction = nn.Sequential(
                nn.Conv2d(in_channels, in_channels, sr_ratio, stride=sr_ratio),
                LayerNorm2d(in_channels, eps=1e-5),
            )
        super().__init__(in_channels, num_heads, qkv_bias, reduction)
        self.sr_ratio = sr_ratio

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        check_min_size(x, self.sr_ratio, 'sr_ratio')
        return super().forward(x)

    def key_extent(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of a patch."""
        return self.sr_ratio, self.sr_ratio


@MODELS.register_module()
class LinearSpatialReductionAttention2d(ReducedKeyAttention2d):
    """Attention of every token to keys and values of a grid of averages.

    The feature map is averaged to a grid of the same size for all images, so that the
    cost grows linearly with them; a 1x1 convolution, a LayerNorm and GELU follow. Cells
    of the grid overlap where it does not divide the feature map, and repeat tokens of a
    smaller one.

    Paper: `PVTv2 <https://arxiv.org/abs/2106.13797>`_, section 3.2.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        pool_size: Height and width of the grid.
        qkv_bias: Whether queries, keys and values have a bias.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        pool_size: int = 7,
        qkv_bias: bool = True,
    ) -> None:
        check_positive('pool_size', pool_size)
        reduction = nn.Sequential(
            nn.AdaptiveAvgPool2d(pool_size),
            nn.Conv2d(in_channels, in_channels, kernel_size=1),
            LayerNorm2d(in_channels, eps=1e-5),
            nn.GELU(),
        )
        super().__init__(in_channels, num_heads, qkv_bias, reduction)
        self.pool_size = pool_size

    def key_extent(self, size: tuple[int, int]) -> tuple[float, float]:
        """Return the height and width of a cell of the grid."""
        height, width = size
        return height / self.pool_size, width / self.pool_size
