"""Axial attention: every token attends to its column, then to its row."""

from torch import Tensor, nn

from mmsparse.models.layers.attention_map import AttentionMap, stripe_map
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_heads,
    project,
)
from mmsparse.ops import stripe_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import Size
from mmsparse.registry import MODELS


@MODELS.register_module()
class AxialAttention2d(nn.Module):
    """Attention along the columns and, of its output, along the rows.

    Both attentions have all heads, and projections to queries, keys and values; one
    projection follows. Together every token reaches all others. A depthwise convolution
    of the values is added to the heads, in place of the position encodings of the
    papers, which are made for one size of feature maps. Rows and columns at once, each
    by half of the heads, are :class:`CrossShapedAttention2d` with a ``stripe_width`` of
    1.

    Papers: `Axial Attention <https://arxiv.org/abs/1912.12180>`_, section 3;
    `Axial-DeepLab <https://arxiv.org/abs/2003.07853>`_, section 3.2.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        qkv_bias: Whether queries, keys and values have a bias.
        lepe_kernel: Odd kernel size of the convolution of the values, 0 for none.

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        lepe_kernel: int = 3,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        axis = (in_channels, num_heads, qkv_bias, lepe_kernel)
        self.columns = AxisAttention(*axis)
        self.rows = AxisAttention(*axis)
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        height, width = x.shape[-2:]
        out = self.columns(channels_last(x), (height, 1))
        return channels_first(project(self.proj, self.rows(out, (1, width))))

    def attention_maps(
        self, x: Tensor, queries: Tensor
    ) -> tuple[AttentionMap, AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads along the columns, and one along the rows,
            whose keys have gathered from their columns.
        """
        height, width = x.shape[-2:]
        x = channels_last(x)
        columns = self.columns.attention_map('columns', x, (height, 1), queries)
        x = self.columns(x, (height, 1))
        return columns, self.rows.attention_map('rows', x, (1, width), queries)


class AxisAttention(nn.Module):
    """Attention within stripes, from the features to the concatenated heads.

    Args:
        channels: C of the feature map.
        num_heads: Number of heads; divides C.
        qkv_bias: Whether queries, keys and values have a bias.
        lepe_kernel: Odd kernel size of a depthwise convolution of the values, 0 for
            none.
    """

    def __init__(
        self, channels: int, num_heads: int, qkv_bias: bool, lepe_kernel: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.lepe = DepthwiseConv2d(channels, lepe_kernel) if lepe_kernel else None

    def forward(self, x: Tensor, stripe: Size) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        q, k, v = project(self.qkv, x).chunk(3, dim=-1)
        out = stripe_attention(q, k, v, self.num_heads, stripe)
        if self.lepe is None:
            return out
        return out + channels_last(self.lepe(channels_first(v)))

    def attention_map(
        self, name: str, x: Tensor, stripe: Size, queries: Tensor
    ) -> AttentionMap:
        """Compute the attention of some queries, see :func:`stripe_map`.

        Args:
            name: Name of the attention map.
            x: Features, (B, H, W, C).
            stripe: Height and width of the stripes.
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads.
        """
        q, k, _ = project(self.qkv, x).chunk(3, dim=-1)
        return stripe_map(name, q, k, self.num_heads, stripe, queries)
