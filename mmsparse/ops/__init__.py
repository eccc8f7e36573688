"""Attention patterns as pure functions on tensors; torch is all that they need.

Each op has a plain reference, which is the definition, and fast paths that compute
the same function; ``backend='auto'`` chooses among them.
"""

from mmsparse.ops.attention import biased_attention
from mmsparse.ops.backends import reference_only
from mmsparse.ops.deformable import (
    attend_map,
    deformable_attention,
    positions_v2022,
    positions_v2023,
    sample_points,
)
from mmsparse.ops.depthwise import depthwise_conv2d
from mmsparse.ops.foreground import (
    binary_focal_loss,
    cells_by_reach,
    cells_by_size,
)
from mmsparse.ops.levels import cell_centres, level_proposals, valid_sizes
from mmsparse.ops.linear import linear_map
from mmsparse.ops.neighborhood import neighborhood_attention
from mmsparse.ops.recompute import by_pictures, recomputed
from mmsparse.ops.regions import (
    add_regions,
    blank_outside,
    merge_regions,
    pad_to_multiple,
    partition_regions,
    pool_regions,
    region_means,
)
from mmsparse.ops.routing import route_regions, routed_attention, weigh_routes
from mmsparse.ops.shunted import shunted_attention
from mmsparse.ops.tokens import (
    TokenSelection,
    foreground_counts,
    kept_by_layer,
    layer_counts,
    logit_product,
    probability_product,
    put_rows,
    select_tokens,
    take_rows,
)
from mmsparse.ops.windows import window_attention, window_bias

__all__ = [
    'TokenSelection',
    'add_regions',
    'attend_map',
    'biased_attention',
    'binary_focal_loss',
    'blank_outside',
    'by_pictures',
    'cell_centres',
    'cells_by_reach',
    'cells_by_size',
    'deformable_attention',
    'depthwise_conv2d',
    'foreground_counts',
    'kept_by_layer',
    'layer_counts',
    'level_proposals',
    'linear_map',
    'logit_product',
    'merge_regions',
    'neighborhood_attention',
    'pad_to_multiple',
    'partition_regions',
    'pool_regions',
    'positions_v2022',
    'positions_v2023',
    'probability_product',
    'put_rows',
    'recomputed',
    'reference_only',
    'region_means',
    'route_regions',
    'routed_attention',
    'sample_points',
    'select_tokens',
    'shunted_attention',
    'take_rows',
    'valid_sizes',
    'weigh_routes',
    'window_attention',
    'window_bias',
]
