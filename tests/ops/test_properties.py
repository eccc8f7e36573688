"""Every op on random inputs: backends equal the reference, finite, inputs unchanged.

MMSPARSE_FUZZ=1000 tries as many examples of each instead of a few.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmsparse import ops
from mmsparse.ops import (
    _depthwise,
    _linear,
    attention,
    deformable,
    routed,
)
from mmsparse.ops.deformable import query_axis_v2022, query_axis_v2023
from mmsparse.ops.regions import merge_regions, partition_regions
from mmsparse.ops.routing import ROUTINGS

EXAMPLES = int(os.environ.get('MMSPARSE_FUZZ', 12))
AT_RANDOM = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
small, few = st.integers(1, 7), st.integers(1, 3)


class Case(NamedTuple):
    """An op with its inputs.

    Args:
        call: Compute it from a backend and the inputs.
        inputs: Tensors with gradient.
        backends: Its backends but the reference.
        num_factors: The first so many inputs are queries and keys.
    """

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    backends: tuple[str, ...]
    num_factors: int = 2


class Maker:
    """Draws tensors of one dtype, some of them with permuted strides."""

    def __init__(self, draw):
        self.draw = draw
        self.dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        self.generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def __call__(self, *shape):
        x = torch.randn(shape, dtype=self.dtype, generator=self.generator)
        order = self.draw(st.permutations(range(len(shape))))
        back = [order.index(i) for i in range(len(shape))]
        return x.permute(order).contiguous().permute(back).requires_grad_()


def but_reference(backends):
    return tuple(name for name in backends if name not in ('reference', 'triton'))


@st.composite
def biased(draw):
    new, heads = Maker(draw), draw(few)
    batch, n, m, width = draw(few), draw(small), draw(small), draw(small)
    inputs = (
        *(new(batch, heads, count, width) for count in (n, m, m)),
        new(*draw(st.sampled_from([(heads, n, m), (batch, heads, n, m), (n, m)]))),
    )
    return Case(
        lambda backend, q, k, v, bias: ops.biased_attention(q, k, v, bias, backend),
        inputs,
        but_reference(attention.BACKENDS),
    )


@st.composite
def routes(draw):
    new, heads = Maker(draw), draw(few)
    batch, grid = draw(few), (draw(few), draw(few))
    regions = grid[0] * grid[1]
    topk = draw(st.integers(1, regions))
    size, kv_size = ([count * draw(few) for count in grid] for _ in range(2))
    width, value_width = heads * draw(few), heads * draw(few)
    routes = torch.rand(batch, regions, regions, generator=new.generator).topk(topk)[1]
    inputs = (
        new(batch, *size, width),
        new(batch, *kv_size, width),
        new(batch, *kv_size, value_width),
    )
    weighted = draw(st.booleans())
    return Case(
        lambda backend, q, k, v, weights=None: routed.routed_attention(
            q, k, v, routes, grid, heads, backend=backend, route_weights=weights
        ),
        (*inputs, new(batch, regions, topk)) if weighted else inputs,
        ('auto', 'gathered') if weighted else but_reference(routed.BACKENDS),
    )


@st.composite
def bilevel(draw):
    new, heads = Maker(draw), draw(few)
    batch, size = draw(few), (draw(small), draw(small))
    width, value_width = heads * draw(few), heads * draw(few)
    topk, side, scale = draw(st.integers(1, 9)), draw(few), draw(st.floats(0.1, 1))
    routing = draw(st.sampled_from(ROUTINGS))
    kv_pool = draw(st.sampled_from([None, ('avg', 2), ('adaptive_max', 2)]))
    return Case(
        lambda backend, q, k, v: ops.bilevel_routing_attention(
            q, k, v, heads, topk, side, scale, routing, None, kv_pool, backend
        ),
        (
            new(batch, *size, width),
            new(batch, *size, width),
            new(batch, *size, value_width),
        ),
        but_reference(routed.BACKENDS) if routing == 'hard' else ('auto', 'gathered'),
    )


@st.composite
def neighbors(draw):
    new, heads, kernel = Maker(draw), draw(few), draw(st.sampled_from([1, 3, 5]))
    dilation = draw(few)
    size = [kernel * dilation + draw(st.integers(0, 9)) for _ in range(2)]
    shape = (draw(few), *size, heads * draw(few))
    inputs = (*(new(*shape) for _ in range(3)), new(heads, *(2 * kernel - 1,) * 2))
    return Case(
        lambda backend, *tensors: ops.neighborhood_attention(
            *tensors, backend, dilation
        ),
        inputs,
        ('auto', 'tiled'),
    )


@st.composite
def windows(draw):
    new, heads, window = Maker(draw), draw(few), draw(st.integers(1, 4))
    shift = draw(st.integers(0, window - 1))
    shape = (draw(few), window * draw(few), window * draw(few), heads * draw(few))
    inputs = (*(new(*shape) for _ in range(3)), new(heads, window**2, window**2))
    return Case(
        lambda backend, *tensors: ops.window_attention(
            *tensors, window, shift, backend
        ),
        inputs,
        but_reference(attention.BACKENDS),
    )


@st.composite
def stripes(draw):
    new, heads, width = Maker(draw), 2 * draw(few), draw(small)
    shape = (draw(few), draw(small), draw(small), heads * draw(few))
    return Case(
        lambda backend, *tensors: ops.cross_shaped_attention(
            *tensors, heads, width, backend
        ),
        tuple(new(*shape) for _ in range(3)),
        but_reference(attention.BACKENDS),
    )


@st.composite
def agents(draw):
    new, heads = Maker(draw), draw(few)
    batch, size, count = draw(few), (draw(small), draw(small)), draw(small)
    width, length = heads * draw(few), size[0] * size[1]
    inputs = (
        *(new(batch, *size, width) for _ in range(2)),
        new(batch, count, width),
        new(batch, *size, width),
        new(heads, count, length),
        new(heads, length, count),
    )
    return Case(
        lambda backend, q, k, agents, v, agent_bias, query_bias: ops.agent_attention(
            q, k, v, agents, heads, agent_bias, query_bias, backend
        ),
        inputs,
        but_reference(attention.BACKENDS),
        num_factors=3,
    )


@st.composite
def shunted(draw):
    new, groups = Maker(draw), draw(few)
    heads = groups * draw(few)
    batch, width = draw(few), heads * draw(few)
    lengths = [draw(small) for _ in range(groups)]
    keys = [new(batch, length, width // groups) for length in lengths]
    values = [new(batch, length, width // groups) for length in lengths]
    return Case(
        lambda backend, q, *kv: ops.shunted_attention(
            q, kv[:groups], kv[groups:], heads, backend=backend
        ),
        (new(batch, draw(small), width), *keys, *values),
        but_reference(attention.BACKENDS),
        num_factors=1 + groups,
    )


@st.composite
def sampled(draw):
    new, groups = Maker(draw), draw(few)
    heads = groups * draw(few)
    batch, width = draw(few), heads * draw(few)
    size, keys = [[draw(small), draw(small)] for _ in range(2)]
    table = [draw(st.integers(1, 9)) for _ in range(2)]
    # Some are beyond the feature map.
    locations = new(batch, groups, *keys, 2).detach().mul(0.7).requires_grad_()
    axis = draw(st.sampled_from([query_axis_v2022, query_axis_v2023]))
    axes = tuple(axis(length, locations).detach() for length in size)
    inputs = (
        *(new(batch, *sides, width) for sides in (size, keys, keys)),
        locations,
        new(heads, *table),
    )
    return Case(
        lambda backend, *tensors: ops.deformable_attention(*tensors, axes, backend),
        inputs,
        but_reference(deformable.BACKENDS),
    )


@st.composite
def convolved(draw):
    new, channels = Maker(draw), draw(small)
    kernel = [draw(st.sampled_from([1, 3, 5, 7])) for _ in range(2)]
    residual = draw(st.booleans())
    inputs = (
        new(draw(few), channels, draw(small), draw(small)),
        new(channels, 1, *kernel),
        new(channels),
    )
    return Case(
        lambda backend, *tensors: _depthwise.depthwise_conv2d(
            *tensors, residual, backend
        ),
        inputs,
        but_reference(_depthwise.BACKENDS),
    )


@st.composite
def projected(draw):
    new, before, after = Maker(draw), draw(small), draw(small)
    inputs = (
        new(draw(few), draw(small), draw(small), before),
        new(after, before),
        new(after),
    )
    return Case(
        lambda backend, *tensors: _linear.linear_map(*tensors, backend),
        inputs,
        but_reference(_linear.BACKENDS),
    )


ATTENTION = dict(
    biased=biased,
    routes=routes,
    bilevel=bilevel,
    neighbors=neighbors,
    windows=windows,
    stripes=stripes,
    shunted=shunted,
    agents=agents,
    sampled=sampled,
)
MATH_OPS = ('biased', 'windows', 'stripes', 'shunted', 'agents', 'sampled')
OPS = ATTENTION | dict(convolved=convolved, projected=projected)


@pytest.mark.parametrize('op', OPS)
@given(data=st.data())
@AT_RANDOM
def test_backends_equal_the_reference_and_do_not_change_their_inputs(op, data):
    call, inputs, backends, _ = data.draw(OPS[op]())
    before = [x.detach().clone() for x in inputs]
    expected = call('reference', *inputs)
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, inputs, cotangent)
    close = dict(atol=1e-4, rtol=1e-4) if expected.dtype == torch.float32 else {}

    for backend in backends:
        actual = call(backend, *inputs)
        torch.testing.assert_close(actual, expected, **close)
        torch.testing.assert_close(
            torch.autograd.grad(actual, inputs, cotangent), gradients, **close
        )

    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize('op', OPS)
@given(data=st.data())
@AT_RANDOM
def test_large_inputs_give_finite_outputs_and_gradients(op, data):
    call, inputs, backends, _ = data.draw(OPS[op]())
    large = [(1e4 * x.detach()).requires_grad_() for x in inputs]

    for backend in ('reference', *backends):
        out = call(backend, *large)
        assert out.isfinite().all(), backend
        for gradient in torch.autograd.grad(out.sum(), large):
            assert gradient.isfinite().all(), backend


@pytest.mark.parametrize('op', ATTENTION)
@given(data=st.data())
@AT_RANDOM
def test_logits_beyond_the_range_of_float16_are_attended(op, data):
    call, inputs, backends, num_factors = data.draw(ATTENTION[op]())
    factors = (1000 if i < num_factors else 1 for i in range(len(inputs)))
    half_inputs = [
        (factor * x.detach()).half().requires_grad_()
        for factor, x in zip(factors, inputs, strict=True)
    ]
    expected = call('reference', *(x.float() for x in half_inputs))

    for backend in ('reference', *backends):
        if backend == 'math' and op in MATH_OPS:  # its logits would be infinite
            with pytest.raises(
                ValueError, match="'math' needs q and bias of one dtype"
            ):
                call(backend, *half_inputs)
            continue
        out = call(backend, *half_inputs)
        torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
        for gradient in torch.autograd.grad(out.float().sum(), half_inputs):
            assert not gradient.isnan().any(), backend


@given(data=st.data())
@AT_RANDOM
def test_merging_undoes_partitioning(data):
    new = Maker(data.draw)
    grid, region = ((data.draw(few), data.draw(few)) for _ in range(2))
    size = tuple(n * length for n, length in zip(grid, region, strict=True))
    x = new(data.draw(few), *size, data.draw(few))

    regions = partition_regions(x, grid)

    assert regions.shape[1:3] == (grid[0] * grid[1], region[0] * region[1])
    assert torch.equal(merge_regions(regions, grid, size), x)
