"""Let mmengine's FLOP counter, and with it get_flops of the hosts, count attention."""

from math import prod
from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape


def register_flop_handles() -> None:
    """Add the matrix products of attention to the operators that mmengine counts.

    MMEngine 0.10 counts ``matmul`` and ``bmm``, but neither ``baddbmm`` nor the fused
    attention of torch. Handles that another version has stay.
    """
    table = getattr(complexity_analysis, '_DEFAULT_SUPPORTED_FLOP_OPS', {})
    table.setdefault('aten::baddbmm', _baddbmm_macs)
    table.setdefault('aten::scaled_dot_product_attention', _attention_macs)


def _baddbmm_macs(inputs: list[Any], outputs: list[Any]) -> int:
    _, left, right = map(get_shape, inputs[:3])
    return prod(left) * right[-1]


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    query, key, value = map(get_shape, inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
