"""Every op at random: fast paths are the definition, finite, and write to no input.

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
from mmsparse.ops import _depthwise as depthwise
from mmsparse.ops import _linear as linear
from mmsparse.ops import attention, deformable, neighborhood, routing
from mmsparse.ops.deformable import cell_centers, pixel_centers

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
        inputs: What it is differentiated by.
        backends: The ways to compute it, but the definition.
        matched: How many inputs, from the first on, the logits are products of.
    """

    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    backends: tuple[str, ...]
    matched: int = 2


class Maker:
    """Draws tensors of one type, some of them laid out in another order."""

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
def routed(draw):
    new, heads = Maker(draw), draw(few)
    batch, regions = draw(few), draw(st.integers(1, 9))
    topk = draw(st.integers(1, regions))
    length, keys = draw(small), draw(small)
    width, value_width = heads * draw(few), heads * draw(few)
    routes = torch.rand(batch, regions, regions, generator=new.generator).topk(topk)[1]
    inputs = (
        new(batch, regions, length, width),
        new(batch, regions, keys, width),
        new(batch, regions, keys, value_width),
    )
    weighted = draw(st.booleans())
    return Case(
        lambda backend, q, k, v, weights=None: ops.routed_attention(
            q, k, v, routes, heads, backend=backend, route_weights=weights
        ),
        (*inputs, new(batch, regions, topk)) if weighted else inputs,
        ('auto', 'gathered') if weighted else but_reference(routing.BACKENDS),
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
        but_reference(neighborhood.BACKENDS),
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
        matched=1 + groups,
    )


@st.composite
def sampled(draw):
    new, groups = Maker(draw), draw(few)
    heads = groups * draw(few)
    batch, width = draw(few), heads * draw(few)
    size, keys = [[draw(small), draw(small)] for _ in range(2)]
    table = [draw(st.integers(1, 9)) for _ in range(2)]
    # Some lie beyond the map.
    positions = new(batch, groups, *keys, 2).detach().mul(0.7).requires_grad_()
    centers = draw(st.sampled_from([cell_centers, pixel_centers]))
    axes = tuple(centers(length, positions).detach() for length in size)
    inputs = (
        *(new(batch, *sides, width) for sides in (size, keys, keys)),
        positions,
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
        lambda backend, *tensors: ops.depthwise_conv2d(*tensors, residual, backend),
        inputs,
        but_reference(depthwise.BACKENDS),
    )


@st.composite
def mapped(draw):
    new, before, after = Maker(draw), draw(small), draw(small)
    inputs = (
        new(draw(few), draw(small), draw(small), before),
        new(after, before),
        new(after),
    )
    return Case(
        lambda backend, *tensors: ops.linear_map(*tensors, backend),
        inputs,
        but_reference(linear.BACKENDS),
    )


ATTENTION = dict(
    biased=biased,
    routed=routed,
    neighbors=neighbors,
    windows=windows,
    shunted=shunted,
    sampled=sampled,
)
OPS = ATTENTION | dict(convolved=convolved, mapped=mapped)


@pytest.mark.parametrize('op', OPS)
@given(data=st.data())
@AT_RANDOM
def test_fast_paths_are_the_definition_and_leave_their_inputs(op, data):
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
def test_logits_beyond_the_range_of_float16_are_attended_to(op, data):
    call, inputs, backends, matched = data.draw(ATTENTION[op]())
    factors = (1000 if i < matched else 1 for i in range(len(inputs)))
    halves = [
        (factor * x.detach()).half().requires_grad_()
        for factor, x in zip(factors, inputs, strict=True)
    ]
    expected = call('reference', *(x.float() for x in halves))

    for backend in ('reference', *backends):
        if backend == 'tiled':  # for single precision
            continue
        out = call(backend, *halves)
        torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0.02)
        for gradient in torch.autograd.grad(out.float().sum(), halves):
            assert not gradient.isnan().any(), backend


@given(data=st.data())
@AT_RANDOM
def test_maps_are_put_together_as_they_were_cut(data):
    new = Maker(data.draw)
    grid, region = ((data.draw(few), data.draw(few)) for _ in range(2))
    size = tuple(n * length for n, length in zip(grid, region, strict=True))
    x = new(data.draw(few), *size, data.draw(few))

    regions = ops.partition_regions(x, grid)

    assert regions.shape[1:3] == (grid[0] * grid[1], region[0] * region[1])
    assert torch.equal(ops.merge_regions(regions, grid, size), x)
