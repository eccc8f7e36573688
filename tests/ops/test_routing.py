import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmsparse.ops import bilevel_routing_attention, reference_only, routed
from mmsparse.ops._devices import CPU
from mmsparse.ops.regions import merge_regions, partition_regions
from mmsparse.ops.routed import attention_weights, routed_attention
from mmsparse.ops.routing import POOLS, ROUTINGS, pool_keys, region_affinity, route

CASES = {  # B, grid, region of queries, of keys, D, C, K, heads
    'square': (2, (2, 2), (2, 3), (2, 3), 8, 8, 2, 2),
    'one-region': (1, (1, 1), (1, 5), (1, 5), 4, 4, 1, 1),
    'one-token-regions': (2, (3, 3), (1, 1), (1, 1), 6, 6, 3, 3),
    'few-query-channels': (1, (2, 3), (2, 2), (2, 2), 4, 12, 5, 2),
    'pooled-keys': (2, (1, 4), (3, 3), (2, 2), 8, 8, 3, 4),
    'all-regions': (1, (5, 1), (1, 3), (1, 3), 8, 8, 5, 2),
    'all-regions-pooled': (2, (2, 2), (3, 3), (1, 4), 8, 12, 4, 4),
    'large-regions': (1, (3, 3), (6, 11), (6, 11), 4, 4, 1, 1),
    'many-tokens': (1, (2, 2), (4, 5), (4, 5), 4, 4, 2, 2),
}
BACKENDS = (
    'auto',
    'reference',
    'gathered',
    'masked',
)  # triton_kernels/: triton
# Backends that compute soft routing.
SOFT_BACKENDS = [backend for backend in BACKENDS if backend != 'masked']


@pytest.fixture(params=[1, CPU.gather_numel], ids=['chunked', 'one chunk'])
def chunk_numel(request, on_cpu):
    """A chunk of 1 element still has a quarter of the queries, if K is 4 or more."""
    on_cpu(gather_numel=request.param)


@pytest.fixture(params=CASES.values(), ids=CASES)
def inputs(request):
    return random_inputs(*request.param)


def random_inputs(B, grid, region, kv_region, D, C, K, heads, dtype=torch.float64):
    """Queries, keys, values, routes, grid and number of heads."""

    def feature_map(region, channels):
        size = (grid[0] * region[0], grid[1] * region[1])
        return torch.randn(B, *size, channels, dtype=dtype, requires_grad=True)

    R = grid[0] * grid[1]
    routes = torch.rand(B, R, R).topk(K).indices
    q, k, v = (
        feature_map(region, D),
        feature_map(kv_region, D),
        feature_map(kv_region, C),
    )
    return q, k, v, routes, grid, heads


def dense_oracle(q, k, v, routes, grid, num_heads, scale):
    """Full attention under a mask of the tokens in other regions."""
    size = q.shape[1:3]
    q, k, v = (partition_regions(x, grid) for x in (q, k, v))
    B, R, L, _ = q.shape
    selected = F.one_hot(routes, R).sum(2).bool()  # (B, R, R)
    mask = selected.repeat_interleave(L, 1).repeat_interleave(k.shape[2], 2)
    outs = []
    for q_h, k_h, v_h in zip(
        *(x.flatten(1, 2).chunk(num_heads, -1) for x in (q, k, v)), strict=True
    ):
        logits = scale * q_h @ k_h.transpose(1, 2)
        outs.append(logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v_h)
    return merge_regions(torch.cat(outs, -1).view(B, R, L, -1), grid, size)


def soft_oracle(q, k, v, routes, grid, num_heads, scale, route_weights):
    """Attend region by region, with weighted keys and values."""
    size, width = q.shape[1:3], v.shape[-1] // num_heads
    q, k, v = (partition_regions(x, grid) for x in (q, k, v))
    outs = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    for b, r in itertools.product(*map(range, q.shape[:2])):
        factors = route_weights[b, r, :, None, None]
        keys, values = (
            (factors * x[b, routes[b, r]]).flatten(0, 1).chunk(num_heads, -1)
            for x in (k, v)
        )
        for head, query in enumerate(q[b, r].chunk(num_heads, -1)):
            weights = (scale * query @ keys[head].T).softmax(-1)
            outs[b, r, :, head * width : (head + 1) * width] = weights @ values[head]
    return merge_regions(outs, grid, size)


@pytest.mark.usefixtures('chunk_numel')
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_masked_full_attention_in_value_and_gradient(inputs, backend):
    expected = dense_oracle(*inputs, 0.7)
    actual = routed_attention(*inputs, 0.7, backend=backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs[:3], cotangent),
        torch.autograd.grad(expected, inputs[:3], cotangent),
    )


@pytest.mark.usefixtures('chunk_numel')
@pytest.mark.parametrize('backend', SOFT_BACKENDS)
def test_weighted_regions_equal_the_loop_in_value_and_gradient(inputs, backend):
    *tensors, routes, _, _ = inputs
    weights = torch.rand(routes.shape, dtype=torch.float64, requires_grad=True)
    expected = soft_oracle(*inputs, 0.7, weights)
    actual = routed_attention(*inputs, 0.7, weights, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [*tensors, weights], cotangent),
        torch.autograd.grad(expected, [*tensors, weights], cotangent),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    *tensors, routes, grid, heads = random_inputs(1, (1, 3), (2, 1), (1, 2), 2, 4, 2, 2)

    def attend(q, k, v):
        return routed_attention(q, k, v, routes, grid, heads, backend=backend)

    assert gradcheck(attend, tensors)


@pytest.mark.parametrize('backend', SOFT_BACKENDS)
def test_gradients_of_route_weights_are_those_of_finite_differences(backend):
    *tensors, routes, grid, heads = random_inputs(1, (1, 3), (2, 1), (1, 2), 2, 4, 2, 2)
    weights = torch.rand(routes.shape, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, weights):
        return routed_attention(
            q, k, v, routes, grid, heads, route_weights=weights, backend=backend
        )

    assert gradcheck(attend, [*tensors, weights])


@pytest.mark.parametrize('backend', SOFT_BACKENDS)
def test_gradients_of_differentiable_routing_are_those_of_finite_differences(backend):
    tensors = [
        torch.randn(1, 2, 5, C, dtype=torch.float64, requires_grad=True)
        for C in (2, 2, 4)
    ]

    def attend(q, k, v):
        return bilevel_routing_attention(
            q, k, v, 2, 2, 2, routing='differentiable', backend=backend
        )

    assert gradcheck(attend, tensors)


def test_all_regions_routed_equals_full_attention():
    q, k, v, _, grid, heads = random_inputs(2, (2, 2), (2, 3), (2, 3), 8, 8, 1, 2)
    routes = torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4)
    tokens = (
        x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)
    )
    full = F.scaled_dot_product_attention(*tokens, scale=8**-0.5)
    full = full.transpose(1, 2).reshape(q.shape)

    torch.testing.assert_close(routed_attention(q, k, v, routes, grid, heads), full)


@pytest.mark.parametrize('backend', BACKENDS)
def test_tokens_of_other_regions_do_not_matter(backend):
    q, k, v, *others = random_inputs(1, (2, 3), (2, 2), (2, 2), 8, 8, 2, 2)
    routes, grid, _ = others
    before = routed_attention(q, k, v, *others, backend=backend)
    other = next(r for r in range(6) if r not in routes[0, 0])
    k, v = (
        merge_regions(
            partition_regions(x.detach(), grid).index_fill(1, torch.tensor(other), 1e3),
            grid,
            (4, 6),
        )
        for x in (k, v)
    )

    after = routed_attention(q, k, v, *others, backend=backend)

    assert torch.equal(before[:, :2, :2], after[:, :2, :2])  # region 0


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_stays_near_float32(backend):
    *tensors, routes, grid, heads = random_inputs(
        2, (2, 2), (2, 3), (2, 3), 8, 8, 2, 2, torch.float32
    )
    exact = routed_attention(*tensors, routes, grid, heads)

    rounded = routed_attention(
        *(x.bfloat16() for x in tensors), routes, grid, heads, backend=backend
    )

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_weights_sum_to_one():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 5, 8)
    routes = torch.rand(2, 4, 4).topk(2).indices

    weights = attention_weights(q, k, routes, num_heads=2, scale=0.3)

    assert weights.shape == (2, 4, 2, 6, 2 * 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


# Routing


@pytest.mark.parametrize('scale', [None, 0.3])
def test_affinities_are_scaled_dot_products(scale):
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)

    affinity = region_affinity(query, key, scale, router=lambda x: 2 * x + 1)

    expected = torch.einsum('brd,bsd->brs', 2 * query + 1, 2 * key + 1)
    factor = 3**-0.5 if scale is None else scale
    torch.testing.assert_close(affinity, factor * expected)


@pytest.mark.parametrize('size', [(4, 6), (5, 7), (1, 3)], ids=str)
def test_routes_are_the_best_regions_in_order_and_scores_the_softmax(size):
    q, k = torch.randn(2, 2, *size, 3)

    routing = route(q, k, topk=4, regions_per_side=2)

    h, w = routing.region
    assert (h, w) == (max(size[0] // 2, 1), max(size[1] // 2, 1))
    boxes = [
        (slice(top, top + h), slice(left, left + w))
        for top in range(0, size[0], h)
        for left in range(0, size[1], w)
    ]
    assert routing.grid[0] * routing.grid[1] == len(boxes)
    for b, (r, box) in itertools.product(range(2), enumerate(boxes)):
        query = q[b][box].mean((0, 1))
        affinity = 3**-0.5 * torch.stack([k[b][x].mean((0, 1)) @ query for x in boxes])
        best = affinity.sort(descending=True)
        assert routing.routes[b, r].tolist() == best.indices[:4].tolist()
        torch.testing.assert_close(routing.scores[b, r], best.values[:4].softmax(0))


def test_routes_are_computed_without_autocast():
    q, k = torch.randn(2, 1, 28, 28, 16)
    router = torch.nn.Linear(16, 16)
    expected = route(q, k, 4, 7, router=router)

    with torch.autocast('cpu', torch.bfloat16):
        actual = route(q, k, 4, 7, router=router)

    assert torch.equal(actual.routes, expected.routes)
    assert actual.scores.dtype == torch.float32
    assert route(q.bfloat16(), k.bfloat16(), 4, 7).scores.dtype == torch.float32


def test_pooling_without_a_type_returns_its_input():
    x = torch.rand(1, 4, 4, 2)

    assert pool_keys(x, (2, 2), None) is x


# The whole op


def bilevel_oracle(q, k, v, num_heads, topk, side, scale, routing, router, kv_pool):
    """Route and attend image by image and region by region, on slices."""
    h, w = (max(length // side, 1) for length in q.shape[1:3])
    out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    boxes = [
        (slice(top, top + h), slice(left, left + w))  # shorter at the border
        for top in range(0, q.shape[1], h)
        for left in range(0, q.shape[2], w)
    ]
    for b in range(len(q)):
        query, key = (
            torch.stack([x[b][box].mean((0, 1)) for box in boxes]) for x in (q, k)
        )
        if routing != 'differentiable':
            query, key = query.detach(), key.detach()
        if router is not None:
            query, key = router(query), router(key)
        for affinity, box in zip(scale * query @ key.T, boxes, strict=True):
            best, routes = affinity.topk(min(topk, len(boxes)))
            factors = torch.ones_like(best) if routing == 'hard' else best.softmax(0)
            keys, values = (
                torch.cat(
                    [
                        factor * region_tokens(x[b][boxes[j]], h, w, kv_pool)
                        for factor, j in zip(factors, routes, strict=True)
                    ]
                ).chunk(num_heads, -1)
                for x in (k, v)
            )
            queries = q[b][box].flatten(0, 1).chunk(num_heads, -1)
            heads = [
                (scale * queries[n] @ keys[n].T).softmax(-1) @ values[n]
                for n in range(num_heads)
            ]
            out[b][box] = torch.cat(heads, -1).view_as(out[b][box])
    return out


def region_tokens(region, h, w, kv_pool):
    """Fill a region with zeros to h x w and pool it, to (L', C)."""
    region = F.pad(region, (0, 0, 0, w - region.shape[1], 0, h - region.shape[0]))
    region = region.permute(2, 0, 1)[None]
    if kv_pool is not None:
        kind, n = kv_pool
        window = (min(n, h), min(n, w))
        region = {
            'avg': lambda x: F.avg_pool2d(x, window),
            'max': lambda x: F.max_pool2d(x, window),
            'adaptive_avg': lambda x: F.adaptive_avg_pool2d(x, n),
            'adaptive_max': lambda x: F.adaptive_max_pool2d(x, n),
        }[kind](region)
    return region[0].flatten(1).T


OPTIONS = {
    'default': dict(),
    'soft': dict(routing='soft'),
    'differentiable': dict(routing='differentiable'),
    'router': dict(routing='differentiable', router=torch.sin),
    'hard, router': dict(router=torch.sin),
    'avg': dict(kv_pool=('avg', 2)),
    'max, soft': dict(kv_pool=('max', 2), routing='soft'),
    'adaptive avg, differentiable': dict(
        kv_pool=('adaptive_avg', 2), routing='differentiable'
    ),
    'adaptive max': dict(kv_pool=('adaptive_max', 1)),
}


@pytest.mark.parametrize('size', [(6, 9), (7, 10), (2, 5)], ids=str)
@pytest.mark.parametrize('options', OPTIONS.values(), ids=OPTIONS)
def test_the_whole_op_equals_attention_region_by_region(options, size):
    tensors = [
        torch.randn(2, *size, C, dtype=torch.float64, requires_grad=True)
        for C in (4, 4, 6)
    ]
    defaults = dict(routing='hard', router=None, kv_pool=None)
    expected = bilevel_oracle(*tensors, 2, 3, 3, 0.7, **{**defaults, **options})
    cotangent = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, tensors, cotangent)

    hard = 'routing' not in options
    for backend in BACKENDS if hard else SOFT_BACKENDS:
        actual = bilevel_routing_attention(
            *tensors, 2, 3, 3, scale=0.7, backend=backend, **options
        )
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual, tensors, cotangent), gradients
        )


def test_a_router_gets_gradients_of_differentiable_routing_only():
    q, k, v = torch.randn(3, 1, 6, 6, 4)
    router = torch.nn.Linear(4, 4)

    for routing in ROUTINGS:
        out = bilevel_routing_attention(
            q, k, v, 2, 3, 3, routing=routing, router=router
        )
        assert out.requires_grad == (routing != 'hard')  # the router weighs regions
    out.sum().backward()

    assert router.weight.grad.ne(0).any()


def test_the_default_scale_is_that_of_all_heads_together():
    q, k, v = torch.randn(3, 1, 6, 6, 4)

    torch.testing.assert_close(
        bilevel_routing_attention(q, k, v, 2, 3, 3),
        bilevel_routing_attention(q, k, v, 2, 3, 3, scale=0.5),
    )


def test_padded_tokens_add_exp_0_to_every_sum():
    """5x5 in 9 regions of 2x2, which have 36 tokens: 11 are padding."""
    q, k, v = torch.randn(3, 1, 5, 5, 4)
    exps = (0.5 * q.flatten(1, 2) @ k.flatten(1, 2).transpose(1, 2)).exp()

    out = bilevel_routing_attention(q, k, v, 1, 9, 2)

    expected = exps @ v.flatten(1, 2) / (exps.sum(-1, keepdim=True) + 11)
    torch.testing.assert_close(out, expected.view_as(v))


def test_more_routes_than_regions_select_all_regions():
    q, k, v = torch.randn(3, 1, 2, 3, 4)

    torch.testing.assert_close(
        bilevel_routing_attention(q, k, v, 2, 100, 3),
        bilevel_routing_attention(q, k, v, 2, 6, 3),
    )


def test_auto_chooses_the_reference_within_reference_only(monkeypatch):
    q, k, v = torch.randn(3, 1, 6, 6, 4)
    calls = []
    monkeypatch.setattr(routed, '_reference', lambda *_: calls.append(1) or v)

    bilevel_routing_attention(q, k, v, 2, 3, 3)
    assert not calls
    with reference_only():
        bilevel_routing_attention(q, k, v, 2, 3, 3)

    assert calls


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(topk=0), 'topk must be at least 1; got 0'),
        (dict(regions_per_side=0), 'regions_per_side must be at least 1; got 0'),
        (dict(num_heads=3), 'channels of q and k, 4, and of v, 6; got 3'),
        (dict(routing='loose'), "'hard', 'soft', 'differentiable'.*got 'loose'"),
        (dict(kv_pool=('conv', 2)), r"'adaptive_avg', .*; got \('conv', 2\)"),
        (dict(kv_pool=('avg', 0)), r"size of at least 1, .*got \('avg', 0\)"),
        (dict(kv_pool=('avg',)), r"got \('avg',\)"),
        (dict(kv_pool=('avg', 2, 2)), r"got \('avg', 2, 2\)"),
        (dict(backend='fast'), "'gathered', 'masked', 'triton'.*got 'fast'"),
        (
            dict(backend='masked', routing='soft'),
            "'masked' needs hard routing, without route_weights; use 'gathered' or",
        ),
    ],
)
def test_arguments_out_of_range_are_rejected(options, message):
    q, k, v = torch.rand(1, 4, 4, 4), torch.rand(1, 4, 4, 4), torch.rand(1, 4, 4, 6)
    arguments = {**dict(num_heads=2, topk=2, regions_per_side=2), **options}

    with pytest.raises(ValueError, match=message):
        bilevel_routing_attention(q, k, v, **arguments)


def test_a_grid_that_does_not_divide_the_feature_map_is_rejected():
    q, k, v, routes, _, heads = random_inputs(1, (2, 2), (2, 2), (2, 2), 4, 4, 2, 2)

    for backend in ('reference', 'gathered'):
        with pytest.raises(ValueError, match='grid=3x2 must divide .* of 4x4'):
            routed_attention(q, k, v, routes, (3, 2), heads, backend=backend)


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
