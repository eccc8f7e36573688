"""Full attention: every position attends to all positions (BiFormer's last stage)."""

from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    shared_key_weights,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_choice,
    check_heads,
    project,
)
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.attention import full_attention
from mmsparse.registry import MODELS

LEPE_SOURCES = ('input', 'values')


@MODELS.register_module()
class FullAttention2d(nn.Module):
    """Attention of every token to every other, in BiFormer's last stage.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        qk_scale: Factor on the dot products of queries and keys;
            (C / heads)**-0.5 if None.
        lepe_kernel: Odd kernel size of the depthwise convolution that is added to the
            heads (local enhancement), 0 for none.
        lepe_source: Tensor that is convolved: the ``input``, as in most of the
            published models, or the ``values``, as in the routed stages and in
            ``stl-nchw``.

    Raises:
        ValueError: ``num_heads`` does not divide ``in_channels``, or ``lepe_source``
            is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        lepe_kernel: int = 5,
        lepe_source: str = 'input',
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        check_choice('lepe_source', lepe_source, LEPE_SOURCES)
        self.num_heads = num_heads
        self.scale = qk_scale
        self.lepe_source = lepe_source
        self.qkv = nn.Linear(in_channels, 3 * in_channels, bias=qkv_bias)
        self.lepe = DepthwiseConv2d(in_channels, lepe_kernel) if lepe_kernel else None
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = project(self.qkv, channels_last(x)).chunk(3, dim=-1)  # (B, H, W, C)
        out = full_attention(q, k, v, self.num_heads, scale=self.scale)
        if self.lepe is not None:
            source = x if self.lepe_source == 'input' else channels_first(v)
            out = out + channels_last(self.lepe(source))
        return channels_first(project(self.proj, out))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads.
        """
        q, k, _ = project(self.qkv, channels_last(x)).flatten(1, 2).chunk(3, dim=-1)
        scale = self.scale
        if scale is None:
            scale = (x.shape[1] // self.num_heads) ** -0.5
        weights, index = shared_key_weights(q[:, queries], k, self.num_heads, scale)
        keys = key_centers(x.shape[-2:], x).expand(len(x), -1, -1)
        return (AttentionMap('', weights, index, keys),)
