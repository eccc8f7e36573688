"""Attention in which groups of heads see keys of different coarseness (Shunted)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmsparse.ops._backend import pick_backend
from mmsparse.ops.attention import (
    BACKENDS,
    biased_attention,
    merge_heads,
    split_heads,
)


def shunted_attention(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    num_heads: int,
    scale: float | None = None,
    backend: str = 'auto',
) -> Tensor:
    """Let every group of heads attend to keys and values of its own.

    Args:
        q: Queries, (B, N, C); channels in the order of the heads.
        keys: The keys of each of G groups, (B, N_g, C / G); group g has the g-th G-th
            of the heads, and the numbers N_g of keys may differ.
        values: The values of each group, (B, N_g, C / G).
        num_heads: Number of heads of all groups together; a multiple of G that
            divides C.
        scale: Factor on the products of queries and keys; (C / num_heads)**-0.5 if
            None.
        backend: How to compute it: ``reference``, ``products``, ``sdpa`` or ``auto``.

    Returns:
        (B, N, C), the groups side by side.

    Raises:
        ValueError: The heads, or the widths of keys and values, do not fit the groups,
            or ``backend`` is unknown.

    Source: Shunted Self-Attention, arXiv 2111.15193.
    """
    _check(q, keys, values, num_heads, backend)
    if scale is None:
        scale = (q.shape[-1] // num_heads) ** -0.5
    outs = []
    for group in zip(q.chunk(len(keys), dim=-1), keys, values, strict=True):
        q_heads, k_heads, v_heads = (
            split_heads(tokens, num_heads // len(keys)) for tokens in group
        )  # (B, heads, tokens, width of a head)
        out = biased_attention(q_heads, k_heads, v_heads, backend=backend, scale=scale)
        outs.append(merge_heads(out))  # (B, N, C / G)
    return torch.cat(outs, dim=-1)


def _check(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    num_heads: int,
    backend: str,
) -> None:
    groups, channels = len(keys), q.shape[-1]
    if groups == 0 or groups != len(values):
        raise ValueError(
            f'keys and values need one entry a group, at least one group; got {groups} '
            f'and {len(values)} entries.'
        )
    if num_heads < 1 or num_heads % groups or channels % num_heads:
        raise ValueError(
            f'num_heads must be a multiple of the number of groups, {groups}, and '
            f'divide the width of q, {channels}; got {num_heads}.'
        )
    widths = [tokens.shape[-1] for tokens in (*keys, *values)]
    if any(width != channels // groups for width in widths):
        raise ValueError(
            f'Keys and values need the width {channels // groups}, that of q '
            f'({channels}) over the number of groups ({groups}); got {widths}.'
        )
    pick_backend(backend, BACKENDS)
