"""Agent attention: pooled queries gather from all keys, and all queries from these."""

from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.models.layers.attention_map import (
    AttentionMap,
    key_centers,
    shared_key_weights,
)
from mmsparse.models.layers.common import (
    DepthwiseConv2d,
    check_heads,
    project,
)
from mmsparse.ops import agent_attention
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.registry import MODELS

BLOCK_SIDE = 7  # of the coarse grid of the block bias


@MODELS.register_module()
class AgentAttention2d(nn.Module):
    """Attention of every token to agents, which attend to all tokens.

    Agents are means of the queries over the cells of a square grid. The cost grows
    linearly with the feature map, and the agents are as many for all images; where the
    grid does not divide a feature map its cells overlap, and they repeat queries of a
    smaller one. Both attentions have a learned position bias. A depthwise convolution
    of the values is added to the heads.

    Paper: `Agent Attention <https://arxiv.org/abs/2312.08874>`_, section 4.2.

    Args:
        in_channels: C of the feature map.
        num_heads: Number of heads; divides ``in_channels``.
        num_agents: Number of agents, a square number.
        map_size: Size of the feature map that the position biases are made for, (H, W)
            or one number for both. They are resized for other feature maps, and when
            biases of another size are loaded.
        qkv_bias: Whether queries, keys and values have a bias.
        lepe_kernel: Odd kernel size of the convolution of the values, 0 for none.

    Raises:
        ValueError: An argument is out of range or does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        num_heads: int = 8,
        num_agents: int = 49,
        map_size: int | tuple[int, int] = 14,
        qkv_bias: bool = True,
        lepe_kernel: int = 3,
    ) -> None:
        super().__init__()
        check_heads(in_channels, num_heads)
        if num_agents < 1 or isqrt(num_agents) ** 2 != num_agents:
            raise ValueError(
                'num_agents must be a square number, for example 49 for a grid of 7x7; '
                f'got {num_agents}.'
            )
        self.num_heads = num_heads
        self.num_agents = num_agents
        self.qkv = nn.Linear(in_channels, 3 * in_channels, bias=qkv_bias)
        self.agent_bias = AgentBias(num_heads, num_agents, map_size)
        self.query_bias = AgentBias(num_heads, num_agents, map_size)
        self.lepe = DepthwiseConv2d(in_channels, lepe_kernel) if lepe_kernel else None
        self.proj = nn.Linear(in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        q, k, v = project(self.qkv, channels_last(x)).chunk(3, dim=-1)  # (B, H, W, C)
        agent_bias, query_bias = self._biases(x)
        out = agent_attention(
            q, k, v, self._agents(q), self.num_heads, agent_bias, query_bias
        )
        if self.lepe is not None:
            out = out + channels_last(self.lepe(channels_first(v)))
        return channels_first(project(self.proj, out))

    def attention_maps(self, x: Tensor, queries: Tensor) -> tuple[AttentionMap]:
        """Compute the attention of some queries.

        Args:
            x: Input of the layer, (B, C, H, W).
            queries: Row-major indices into H * W, (n,).

        Returns:
            One attention map for all heads: how much of every key reaches a query by
            all agents.
        """
        q, k, _ = project(self.qkv, channels_last(x)).chunk(3, dim=-1)
        agents, (agent_bias, query_bias) = self._agents(q), self._biases(x)
        q, k = q.flatten(1, 2), k.flatten(1, 2)
        scale = (x.shape[1] // self.num_heads) ** -0.5
        gathered, _ = shared_key_weights(agents, k, self.num_heads, scale, agent_bias)
        weights, _ = shared_key_weights(
            q[:, queries], agents, self.num_heads, scale, query_bias[:, queries]
        )
        keys = key_centers(x.shape[-2:], x).expand(len(x), -1, -1)
        index = torch.arange(k.shape[1], device=x.device)
        index = index.expand(len(x), len(queries), -1)
        return (AttentionMap('', weights @ gathered, index, keys),)

    def _agents(self, q: Tensor) -> Tensor:
        """(B, H, W, C) to (B, A, C)."""
        pooled = F.adaptive_avg_pool2d(channels_first(q), isqrt(self.num_agents))
        return channels_last(pooled).flatten(1, 2)

    def _biases(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the biases of agents, (heads, A, N), and queries, (heads, N, A)."""
        size = x.shape[2], x.shape[3]
        return self.agent_bias(size), self.query_bias(size).transpose(1, 2)


class AgentBias(nn.Module):
    """Bias by agent and position: a coarse one, one of the rows and one of the columns.

    Args:
        num_heads: Number of heads.
        num_agents: Number of agents.
        map_size: Size of the feature map that it is made for, (H, W) or one number for
            both.
    """

    def __init__(
        self, num_heads: int, num_agents: int, map_size: int | tuple[int, int]
    ) -> None:
        super().__init__()
        height, width = (map_size, map_size) if isinstance(map_size, int) else map_size
        self.block = _table(num_heads, num_agents, BLOCK_SIDE, BLOCK_SIDE)
        self.rows = _table(num_heads, num_agents, height, 1)
        self.columns = _table(num_heads, num_agents, 1, width)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """Return the bias for a feature map of a size, (heads, A, H * W)."""
        height, width = size
        bias = (
            _resized(self.block, size)
            + _resized(self.rows, (height, 1))
            + _resized(self.columns, (1, width))
        )
        return bias.flatten(2)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        for name in ('rows', 'columns'):
            table = state_dict.get(f'{prefix}{name}')
            if table is not None and table.ndim == 4:
                size = getattr(self, name).shape[2:]
                state_dict[f'{prefix}{name}'] = _resized(table, size)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def _resized(table: Tensor, size: tuple[int, ...]) -> Tensor:
    """Resize (heads, A, h, w), bilinearly."""
    if table.shape[2:] == size:
        return table
    return F.interpolate(table, size, mode='bilinear')
