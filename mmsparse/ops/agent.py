"""Agent attention: a few tokens gather from all keys, and all queries from these."""

from torch import Tensor

from mmsparse.ops.attention import biased_attention, merge_heads, split_heads


def agent_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    agents: Tensor,
    num_heads: int,
    agent_bias: Tensor | None = None,
    query_bias: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Attend from agents to all keys, and from every query to what these gathered.

    Its cost grows linearly with the feature map, since no query meets a key.

    Args:
        q: Queries, (B, H, W, C).
        k: Keys, (B, H, W, C).
        v: Values, (B, H, W, C).
        agents: Agent tokens, (B, A, C): queries to ``k``, and keys of ``q``. Both dot
            products are scaled by (C / heads)**-0.5.
        num_heads: Number of heads; divides C.
        agent_bias: Added to the logits of agents and keys, broadcasts to (B, heads, A,
            H * W). None adds nothing.
        query_bias: Added to the logits of queries and agents, broadcasts to (B, heads,
            H * W, A). None adds nothing.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.

    Returns:
        (B, H, W, C).

    Raises:
        ValueError: The heads do not divide C, or ``backend`` is unknown or cannot
            compute it.

    Source: Agent Attention, arXiv 2312.08874, equation 4.
    """
    size = q.shape[1:3]
    q, k, v = (split_heads(x.flatten(1, 2), num_heads) for x in (q, k, v))
    agents = split_heads(agents, num_heads)  # (B, heads, A, D)
    gathered = biased_attention(agents, k, v, agent_bias, backend)
    out = biased_attention(q, agents, gathered, query_bias, backend)
    return merge_heads(out).unflatten(1, size)
