import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmsparse.ops import bilevel_routing_attention
from mmsparse.ops.attention import full_attention
from mmsparse.ops.regions import pad_to_multiple, region_means
from mmsparse.ops.routing import (
    POOLS,
    check_pool,
    pool_keys,
    region_affinity,
    route,
    routed_attention,
)

SIZES = {  # height and width, for 3 regions per side
    'regions that divide': (6, 9),
    'regions that do not': (7, 10),
    'fewer rows than regions': (2, 5),
}
OPTIONS = {
    'hard': dict(),
    'scale': dict(scale=1.5),
    'all regions': dict(topk=100),
    'soft': dict(routing='soft'),
    'differentiable': dict(routing='differentiable'),
    'router': dict(routing='differentiable', router=lambda x: x.sin().flip(-1)),
    'pooled': dict(kv_pool=('avg', 2)),
    'pooled, soft': dict(kv_pool=('adaptive_max', 1), routing='soft'),
}


def random_inputs(size, D=4, C=6, dtype=torch.float64):
    return tuple(
        torch.randn(2, *size, channels, dtype=dtype, requires_grad=True)
        for channels in (D, D, C)
    )


def step_by_step(
    q,
    k,
    v,
    num_heads,
    topk,
    side,
    scale=None,
    routing='hard',
    router=None,
    kv_pool=None,
):
    """The steps of the op, region by region."""
    height, width = q.shape[1:3]
    h, w = max(height // side, 1), max(width // side, 1)
    grid = (-(-height // h), -(-width // w))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    query, key = (region_means(x, (h, w)) for x in (q, k))
    if routing != 'differentiable':
        query, key = query.detach(), key.detach()
    if router is not None:
        query, key = router(query), router(key)
    affinity = scale * query @ key.mT
    best = affinity.topk(min(topk, grid[0] * grid[1]))
    weights = None if routing == 'hard' else best.values.softmax(-1)
    q, k, v = (pad_to_multiple(x, (h, w)) for x in (q, k, v))
    k, v = (pool_keys(x, grid, kv_pool) for x in (k, v))
    out = routed_attention(
        q, k, v, best.indices, grid, num_heads, scale, weights, 'reference'
    )
    return out[:, :height, :width]


@pytest.mark.parametrize('backend', ['auto', 'reference', 'gathered'])
@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_equals_its_steps_in_value_and_gradient(options, size, backend):
    tensors = random_inputs(size)
    arguments = dict(num_heads=2, topk=3) | options
    expected = step_by_step(*tensors, side=3, **arguments)
    cotangent = torch.randn_like(expected)

    actual = bilevel_routing_attention(
        *tensors, regions_per_side=3, backend=backend, **arguments
    )

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    )


@pytest.mark.parametrize('size', SIZES.values(), ids=SIZES)
def test_a_mask_equals_the_reference(size):
    tensors = random_inputs(size)

    outs = (
        bilevel_routing_attention(*tensors, 2, 3, 3, backend=backend)
        for backend in ('masked', 'reference')
    )

    torch.testing.assert_close(*outs)


def test_gradients_through_the_routing_equal_finite_differences():
    q, k, v = (torch.randn(1, 2, 4, 2, dtype=torch.float64) for _ in range(3))

    assert gradcheck(
        lambda q, k, v: bilevel_routing_attention(
            q, k, v, 1, 2, 2, routing='differentiable'
        ),
        [x.requires_grad_() for x in (q, k, v)],
    )


def test_all_regions_equal_full_attention():
    q, k, v = random_inputs((6, 9))

    torch.testing.assert_close(
        bilevel_routing_attention(q, k, v, 2, topk=9, regions_per_side=3),
        full_attention(q, k, v, 2, scale=4**-0.5),
    )


def test_filled_regions_add_zero_keys_and_values():
    """5x5 in regions of 2x2: 9 regions of 36 tokens, 11 of them zeros."""
    q, k, v = random_inputs((5, 5))
    exps = (4**-0.5 * q.flatten(1, 2) @ k.flatten(1, 2).mT).exp()

    expected = exps @ v.flatten(1, 2) / (exps.sum(-1, keepdim=True) + 11)

    out = bilevel_routing_attention(q, k, v, 1, topk=9, regions_per_side=2)
    torch.testing.assert_close(out.flatten(1, 2), expected)


def test_routes_are_the_regions_of_greatest_affinity_in_order():
    q, k, _ = random_inputs((7, 10))

    routing = route(q, k, 4, regions_per_side=3, scale=0.3)

    assert routing.region == (2, 3)
    assert routing.grid == (4, 4)
    query, key = (region_means(x, (2, 3)) for x in (q, k))
    for b, r in itertools.product(range(2), range(16)):
        affinity = 0.3 * key[b] @ query[b, r]
        best = affinity.argsort(descending=True)[:4]
        assert routing.routes[b, r].tolist() == best.tolist()
        torch.testing.assert_close(routing.scores[b, r], affinity[best].softmax(0))


def test_autocast_does_not_change_the_routes():
    q, k, _ = random_inputs((12, 12), dtype=torch.float32)
    router = torch.nn.Linear(4, 4)
    expected = route(q, k, 4, 4, router=router)

    with torch.autocast('cpu', torch.bfloat16):
        routing = route(q, k, 4, 4, router=router)

    assert torch.equal(routing.routes, expected.routes)
    assert routing.scores.dtype == torch.float32


def test_affinities_are_scaled_dot_products():
    query, key = torch.randn(2, 5, 4), torch.randn(2, 5, 4)

    torch.testing.assert_close(region_affinity(query, key), query @ key.mT / 2)
    torch.testing.assert_close(
        region_affinity(query, key, 0.3, torch.sin), 0.3 * query.sin() @ key.sin().mT
    )


@pytest.mark.parametrize('name', POOLS)
def test_keys_are_pooled_within_regions_of_any_size(name):
    x = torch.rand(1, 6, 2, 3)  # regions of 3x1

    pooled = pool_keys(x, (2, 2), (name, 2))

    region = x[:, :3, :1].permute(0, 3, 1, 2)
    expected = {
        'avg': lambda x: F.avg_pool2d(x, (2, 1)),
        'max': lambda x: F.max_pool2d(x, (2, 1)),
        'adaptive_avg': lambda x: F.adaptive_avg_pool2d(x, 2),
        'adaptive_max': lambda x: F.adaptive_max_pool2d(x, 2),
    }[name](region)
    h, w = expected.shape[-2:]
    assert pooled.shape == (1, 2 * h, 2 * w, 3)
    torch.testing.assert_close(pooled[:, :h, :w].permute(0, 3, 1, 2), expected)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(topk=0), 'topk must be at least 1; got 0'),
        (dict(regions_per_side=0), 'regions_per_side must be at least 1; got 0'),
        (dict(num_heads=3), 'num_heads must divide .*, 4, and of v, 6; got 3'),
        (dict(routing='projected'), "'differentiable'.; got 'projected'"),
        (dict(kv_pool=('conv', 2)), r"\['adaptive_avg', .*; got \('conv', 2\)"),
        (dict(backend='fast'), "backend must be one of .*; got 'fast'"),
        (dict(backend='masked', routing='soft'), "'masked' needs hard routing"),
    ],
)
def test_arguments_that_do_not_fit_raise(arguments, message):
    defaults = dict(num_heads=2, topk=2, regions_per_side=3)

    with pytest.raises(ValueError, match=message):
        bilevel_routing_attention(*random_inputs((6, 6)), **{**defaults, **arguments})


@pytest.mark.parametrize('kv_pool', [('avg', 0), ('mean', 2), ('avg', 2, 2)])
def test_an_unknown_pooling_raises(kv_pool):
    with pytest.raises(ValueError, match='size of at least 1, for example'):
        check_pool(kv_pool)
