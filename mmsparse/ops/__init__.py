"""Attention patterns as pure functions on tensors; torch is all that they need.

Each op has a plain reference, which is the definition, and fast paths that compute
the same function; ``backend='auto'`` chooses among them.
"""

from mmsparse.ops.attention import biased_attention
from mmsparse.ops.deformable import (
    attend_map,
    deformable_attention,
    positions_v2022,
    positions_v2023,
    sample_points,
)
from mmsparse.ops.neighborhood import neighborhood_attention
from mmsparse.ops.regions import (
    merge_regions,
    pad_to_multiple,
    partition_regions,
    pool_regions,
    region_means,
)
from mmsparse.ops.routing import route_regions, routed_attention, weigh_routes
from mmsparse.ops.shunted import shunted_attention
from mmsparse.ops.windows import window_attention, window_bias

__all__ = [
    'attend_map',
    'biased_attention',
    'deformable_attention',
    'merge_regions',
    'neighborhood_attention',
    'pad_to_multiple',
    'partition_regions',
    'pool_regions',
    'positions_v2022',
    'positions_v2023',
    'region_means',
    'route_regions',
    'routed_attention',
    'sample_points',
    'shunted_attention',
    'weigh_routes',
    'window_attention',
    'window_bias',
]
