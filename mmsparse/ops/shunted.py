"""Shunted attention: groups of heads attend to keys of different coarseness."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmsparse.ops.attention import biased_attention, merge_heads, split_heads


def shunted_attention(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    num_heads: int,
    scale: float | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Attend to separate keys and values in every group of heads.

    Args:
        q: Queries, (B, N, C); the channels are in the order of the heads.
        keys: Keys of each of G groups, (B, N_g, C / G). Group g serves the g-th of G
            equal shares of the heads; the numbers N_g of keys may differ.
        values: Values of each group, (B, N_g, C / G).
        num_heads: Number of heads of all groups together; a multiple of G that
            divides C.
        scale: Factor on the dot products of queries and keys; (C / num_heads)**-0.5 if
            None.
        backend: ``reference``, ``math``, ``sdpa`` or ``auto``, see
            :func:`mmsparse.ops.biased_attention`.

    Returns:
        (B, N, C), the groups concatenated.

    Raises:
        ValueError: The heads, or the channels of keys and values, do not fit the
            groups, or ``backend`` is unknown or cannot compute it.

    Source: Shunted Self-Attention, arXiv 2111.15193.
    """
    _check(q, keys, values, num_heads)
    if scale is None:
        scale = (q.shape[-1] // num_heads) ** -0.5
    outs = []
    for group in zip(q.chunk(len(keys), dim=-1), keys, values, strict=True):
        q_heads, k_heads, v_heads = (
            split_heads(tokens, num_heads // len(keys)) for tokens in group
        )  # (B, heads / G, tokens, D)
        out = biased_attention(q_heads, k_heads, v_heads, backend=backend, scale=scale)
        outs.append(merge_heads(out))  # (B, N, C / G)
    return torch.cat(outs, dim=-1)


def _check(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], num_heads: int
) -> None:
    num_groups, channels = len(keys), q.shape[-1]
    if num_groups == 0 or num_groups != len(values):
        raise ValueError(
            'keys and values must have one entry for each group, and at least one; got '
            f'{num_groups} and {len(values)} entries.'
        )
    if num_heads < 1 or num_heads % num_groups or channels % num_heads:
        raise ValueError(
            f'num_heads must be a multiple of the number of groups, {num_groups}, and '
            f'divide the channels of q, {channels}; got {num_heads}.'
        )
    expected = channels // num_groups
    found = [tokens.shape[-1] for tokens in (*keys, *values)]
    if any(width != expected for width in found):
        raise ValueError(
            f'keys and values must have {expected} channels, those of q ({channels}) '
            f'over the number of groups ({num_groups}); got {found}.'
        )
