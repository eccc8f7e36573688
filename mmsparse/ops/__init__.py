"""Attention patterns as pure functions on tensors; torch is all that they need.

Each op has a plain reference, which is the definition, and fast paths that compute
the same function; ``backend='auto'`` chooses among them.
"""

from mmsparse.ops.regions import (
    merge_regions,
    pad_to_multiple,
    partition_regions,
    pool_regions,
    region_means,
)
from mmsparse.ops.routing import route_regions, routed_attention, weigh_routes

__all__ = [
    'merge_regions',
    'pad_to_multiple',
    'partition_regions',
    'pool_regions',
    'region_means',
    'route_regions',
    'routed_attention',
    'weigh_routes',
]
