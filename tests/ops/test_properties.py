"""Every op at random: fast backends equal the reference, are finite, change no input.

MMSPARSE_FUZZ=1000 tests as many examples of each instead of a few.
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
    neighborhood,
    routed,
)
from mmsparse.ops.deformable import query_axis_v2022, query_axis_v2023
from mmsparse.ops.regions import (
    merge_by_head,
    merge_regions,
    partition_by_head,
    partition_regions,
)

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
        call: Computes it from a backend and the inputs.
        inputs: Tensors with gradient.
        backends: Backends but the reference.
        num_matched: Number of inputs, from the first on, that logits are dot products
            of.
    """

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    backends: tuple[str, ...]
    num_matched: int = 2


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


def fast_backends(backends):
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
        fast_backends(attention.BACKENDS),
    )


@st.composite
def routes(draw):
    new, heads, batch = Maker(draw), draw(few), draw(few)
    grid = (draw(few), draw(few))
    num_regions = grid[0] * grid[1]
    topk = draw(st.integers(1, num_regions))
    size, keys = (tuple(n * draw(few) for n in grid) for _ in range(2))
    width, value_width = heads * draw(few), heads * draw(few)
    affinity = torch.rand(batch, num_regions, num_regions, generator=new.generator)
    routes = affinity.topk(topk).indices
    inputs = (
        new(batch, *size, width),
        new(batch, *keys, width),
        new(batch, *keys, value_width),
    )
    weighted = draw(st.booleans())
    return Case(
        lambda backend, q, k, v, weights=None: routed.routed_attention(
            q, k, v, routes, grid, heads, None, weights, backend
        ),
        (*inputs, new(batch, num_regions, topk)) if weighted else inputs,
        ('auto', 'gathered') if weighted else fast_backends(routed.BACKENDS),
    )


@st.composite
def neighbors(draw):
    new, heads, kernel = Maker(draw), draw(few), draw(st.sampled_from([1, 3, 5]))
    size = [kernel + draw(st.integers(0, 9)) for _ in range(2)]
    shape = (draw(few), *size, heads * draw(few))
    inputs = (*(new(*shape) for _ in range(3)), new(heads, *(2 * kernel - 1,) * 2))
    return Case(
        lambda backend, *tensors: ops.neighborhood_attention(*tensors, backend),
        inputs,
        fast_backends(neighborhood.BACKENDS),
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
        fast_backends(attention.BACKENDS),
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
        fast_backends(attention.BACKENDS),
        num_matched=1 + groups,
    )


@st.composite
def sampled(draw):
    new, groups = Maker(draw), draw(few)
    heads = groups * draw(few)
    batch, width = draw(few), heads * draw(few)
    size, keys = [[draw(small), draw(small)] for _ in range(2)]
    table = [draw(st.integers(1, 9)) for _ in range(2)]
    # Some are off the feature map.
    locations = new(batch, groups, *keys, 2).detach().mul(0.7).requires_grad_()
    query_axis = draw(st.sampled_from([query_axis_v2022, query_axis_v2023]))
    axes = tuple(query_axis(length, locations) for length in size)
    inputs = (
        *(new(batch, *sides, width) for sides in (size, keys, keys)),
        locations,
        new(heads, *table),
    )
    return Case(
        lambda backend, *tensors: ops.deformable_attention(*tensors, axes, backend),
        inputs,
        fast_backends(deformable.BACKENDS),
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
        fast_backends(_depthwise.BACKENDS),
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
        fast_backends(_linear.BACKENDS),
    )


ATTENTION = dict(
    biased=biased,
    routes=routes,
    neighbors=neighbors,
    windows=windows,
    shunted=shunted,
    sampled=sampled,
)
OPS = ATTENTION | dict(convolved=convolved, projected=projected)


@pytest.mark.parametrize('op', OPS)
@given(data=st.data())
@AT_RANDOM
def test_fast_backends_equal_the_reference_and_keep_their_inputs(op, data):
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
    huge = [(1e4 * x.detach()).requires_grad_() for x in inputs]

    for backend in ('reference', *backends):
        out = call(backend, *huge)
        assert out.isfinite().all(), backend
        for gradient in torch.autograd.grad(out.sum(), huge):
            assert gradient.isfinite().all(), backend


@pytest.mark.parametrize('op', ATTENTION)
@given(data=st.data())
@AT_RANDOM
def test_logits_beyond_the_range_of_float16_are_finite(op, data):
    call, inputs, backends, num_matched = data.draw(ATTENTION[op]())
    factors = (1000 if i < num_matched else 1 for i in range(len(inputs)))
    halves = [
        (factor * x.detach()).half().requires_grad_()
        for factor, x in zip(factors, inputs, strict=True)
    ]
    expected = call('reference', *(x.float() for x in halves))

    for backend in ('reference', *backends):
        if backend == 'math':  # refuses float16
            continue
        out = call(backend, *halves)
        torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
        for gradient in torch.autograd.grad(out.float().sum(), halves):
            assert not gradient.isnan().any(), backend


@given(data=st.data())
@AT_RANDOM
def test_merging_inverts_partitioning(data):
    new = Maker(data.draw)
    grid, region = ((data.draw(few), data.draw(few)) for _ in range(2))
    size = tuple(n * length for n, length in zip(grid, region, strict=True))
    heads = data.draw(few)
    x = new(data.draw(few), *size, heads * data.draw(few))

    regions = partition_regions(x, grid)
    by_head = partition_by_head(x, grid, heads)

    assert regions.shape[1:3] == (grid[0] * grid[1], region[0] * region[1])
    assert torch.equal(merge_regions(regions, grid, size), x)
    assert torch.equal(merge_by_head(by_head, grid, size), x)
