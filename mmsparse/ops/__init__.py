"""Attention patterns as pure functions on tensors; they need torch alone.

Each op has a plain reference, the equation in a few lines, and fast backends that
compute the same function; ``backend='auto'`` chooses among them.
"""

from mmsparse.ops._backend import reference_only
from mmsparse.ops.agent import agent_attention
from mmsparse.ops.attention import biased_attention
from mmsparse.ops.deformable import deformable_attention
from mmsparse.ops.multi_scale import multi_scale_deformable_attention
from mmsparse.ops.neighborhood import neighborhood_attention
from mmsparse.ops.routing import bilevel_routing_attention
from mmsparse.ops.shunted import shunted_attention
from mmsparse.ops.stripes import cross_shaped_attention, stripe_attention
from mmsparse.ops.windows import window_attention

__all__ = [
    'agent_attention',
    'biased_attention',
    'bilevel_routing_attention',
    'cross_shaped_attention',
    'deformable_attention',
    'multi_scale_deformable_attention',
    'neighborhood_attention',
    'reference_only',
    'shunted_attention',
    'stripe_attention',
    'window_attention',
]
