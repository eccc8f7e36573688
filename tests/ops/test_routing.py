import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmsparse.ops import routed_attention, routing
from mmsparse.ops.routing import attention_weights, route_regions, weigh_routes

SHAPES = {  # B, R, L, L', D, C, K, heads
    'square': (2, 4, 6, 6, 8, 8, 2, 2),
    'one-region': (1, 1, 5, 5, 4, 4, 1, 1),
    'one-token-regions': (2, 9, 1, 1, 6, 6, 3, 3),
    'narrow-queries': (1, 6, 4, 4, 4, 12, 5, 2),
    'pooled-keys': (2, 4, 9, 4, 8, 8, 3, 4),
    'all-regions': (1, 5, 3, 3, 8, 8, 5, 2),
    'all-regions-pooled': (2, 4, 9, 4, 8, 12, 4, 4),
    'long-regions': (1, 9, 66, 66, 4, 4, 1, 1),
    'many-tokens': (1, 4, 20, 20, 4, 4, 2, 2),
}
BACKENDS = ('auto', 'reference', 'gathered', 'masked')  # but triton: see its own tests
# Which of them know factors on the routed regions.
WEIGHTING = [backend for backend in BACKENDS if backend != 'masked']


@pytest.fixture(params=[1, routing.PART], ids=['in-parts', 'at-once'])
def part(request, monkeypatch):
    """Numbers of a part; one alone cuts where regions have four routes and more."""
    monkeypatch.setattr(routing, 'PART', request.param)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def inputs(request):
    return random_inputs(*request.param)


def random_inputs(B, R, L, L_kv, D, C, K, heads, dtype=torch.float64):
    q = torch.randn(B, R, L, D, dtype=dtype, requires_grad=True)
    k = torch.randn(B, R, L_kv, D, dtype=dtype, requires_grad=True)
    v = torch.randn(B, R, L_kv, C, dtype=dtype, requires_grad=True)
    routes = torch.rand(B, R, R).topk(K).indices
    return q, k, v, routes, heads


def soft_oracle(q, k, v, routes, num_heads, scale, route_weights):
    """One region after another, its keys and values weighted."""
    outs = torch.empty(*q.shape[:3], v.shape[-1], dtype=q.dtype)
    width = v.shape[-1] // num_heads
    for b, r in itertools.product(*map(range, q.shape[:2])):
        factors = route_weights[b, r, :, None, None]
        keys, values = (
            (factors * x[b, routes[b, r]]).flatten(0, 1).chunk(num_heads, -1)
            for x in (k, v)
        )
        for head, query in enumerate(q[b, r].chunk(num_heads, -1)):
            weights = (scale * query @ keys[head].T).softmax(-1)
            outs[b, r, :, head * width : (head + 1) * width] = weights @ values[head]
    return outs


def dense_oracle(q, k, v, routes, num_heads, scale):
    """Full attention under a mask that leaves the routed regions' tokens."""
    B, R, L, _ = q.shape
    routed = F.one_hot(routes, R).sum(2).bool()  # (B, R, R)
    mask = routed.repeat_interleave(L, 1).repeat_interleave(k.shape[2], 2)
    outs = []
    for q_h, k_h, v_h in zip(
        *(x.flatten(1, 2).chunk(num_heads, -1) for x in (q, k, v)), strict=True
    ):
        logits = scale * q_h @ k_h.transpose(1, 2)
        outs.append(logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v_h)
    return torch.cat(outs, -1).view(B, R, L, -1)


@pytest.mark.usefixtures('part')
@pytest.mark.parametrize('backend', BACKENDS)
def test_equals_masked_full_attention_in_value_and_gradient(inputs, backend):
    *_, heads = inputs
    scale = 0.7
    expected = dense_oracle(*inputs, scale)
    actual = routed_attention(*inputs, scale, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs[:3], cotangent),
        torch.autograd.grad(expected, inputs[:3], cotangent),
    )


@pytest.mark.usefixtures('part')
@pytest.mark.parametrize('backend', WEIGHTING)
def test_weighted_regions_equal_the_loop_in_value_and_gradient(inputs, backend):
    *tensors, routes, _ = inputs
    weights = torch.rand(routes.shape, dtype=torch.float64, requires_grad=True)
    expected = soft_oracle(*inputs, 0.7, weights)
    actual = routed_attention(*inputs, 0.7, backend, route_weights=weights)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [*tensors, weights], cotangent),
        torch.autograd.grad(expected, [*tensors, weights], cotangent),
    )


@pytest.mark.parametrize('backend', WEIGHTING)
def test_gradients_of_weighted_regions_are_those_of_finite_differences(backend):
    q, k, v, routes, heads = random_inputs(1, 3, 2, 2, 2, 4, 2, 2)
    query, key = (torch.randn(1, 3, 2, dtype=torch.float64) for _ in range(2))

    def attend(q, k, v, query, key):
        weights = weigh_routes(query, key, routes)
        return routed_attention(
            q, k, v, routes, heads, backend=backend, route_weights=weights
        )

    tensors = [q, k, v, query.requires_grad_(), key.requires_grad_()]
    assert gradcheck(attend, tensors)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_are_those_of_finite_differences(backend):
    *tensors, routes, heads = random_inputs(1, 3, 2, 2, 2, 4, 2, 2)

    assert gradcheck(
        lambda q, k, v: routed_attention(q, k, v, routes, heads, backend=backend),
        tensors,
    )


def test_all_regions_routed_equals_dense_attention():
    q, k, v, _, heads = random_inputs(2, 4, 6, 6, 8, 8, 1, 2)
    routes = torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4)
    tokens = (
        x.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)
    )
    dense = F.scaled_dot_product_attention(*tokens, scale=8**-0.5)
    dense = dense.transpose(1, 2).reshape(2, 4, 6, 8)

    torch.testing.assert_close(routed_attention(q, k, v, routes, heads), dense)


@pytest.mark.parametrize('backend', BACKENDS)
def test_tokens_of_other_regions_do_not_matter(backend):
    q, k, v, routes, heads = random_inputs(1, 6, 4, 4, 8, 8, 2, 2)
    before = routed_attention(q, k, v, routes, heads, backend=backend)
    other = next(r for r in range(6) if r not in routes[0, 0])
    k, v = (x.detach().index_fill(1, torch.tensor(other), 1e3) for x in (k, v))

    after = routed_attention(q, k, v, routes, heads, backend=backend)

    assert torch.equal(before[:, 0], after[:, 0])


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_stays_near_float32(backend):
    q, k, v, routes, heads = random_inputs(2, 4, 6, 6, 8, 8, 2, 2, torch.float32)
    exact = routed_attention(q, k, v, routes, heads)

    rounded = routed_attention(
        q.bfloat16(), k.bfloat16(), v.bfloat16(), routes, heads, backend=backend
    )

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_weights_sum_to_one():
    q, k, _, routes, heads = random_inputs(2, 4, 6, 5, 8, 8, 2, 2)

    weights = attention_weights(q, k, routes, heads, scale=0.3)

    assert weights.shape == (2, 4, heads, 6, 2 * 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_routes_are_the_best_regions_in_order():
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)

    routes = route_regions(query, key, topk=4)

    for b, r in itertools.product(range(2), range(5)):
        affinity = key[b] @ query[b, r]
        assert routes[b, r].tolist() == affinity.argsort(descending=True)[:4].tolist()


def test_routes_are_weighed_by_the_softmax_of_their_affinities():
    query, key = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    routes = route_regions(query, key, topk=4)

    weights = weigh_routes(query, key, routes)

    for b, r in itertools.product(range(2), range(5)):
        kept = (key[b] @ query[b, r])[routes[b, r]]
        torch.testing.assert_close(weights[b, r], kept.softmax(0))


@pytest.mark.parametrize('topk', [0, 5])
def test_topk_outside_the_regions_is_refused(topk):
    with pytest.raises(ValueError, match=f'number of regions, 4; got {topk}'):
        route_regions(torch.rand(1, 4, 2), torch.rand(1, 4, 2), topk)


def test_heads_that_do_not_divide_are_refused():
    q, k, v, routes, _ = random_inputs(1, 4, 2, 2, 6, 8, 2, 2)

    with pytest.raises(ValueError, match=r'num_heads=4 must divide .*\(6\).*\(8\)'):
        routed_attention(q, k, v, routes, num_heads=4)


def test_an_unknown_backend_is_refused():
    q, k, v, routes, heads = random_inputs(1, 4, 2, 2, 4, 4, 2, 2)

    with pytest.raises(ValueError, match="'gathered', 'masked'.*got 'fast'"):
        routed_attention(q, k, v, routes, heads, backend='fast')


def test_a_mask_cannot_weigh():
    q, k, v, routes, heads = random_inputs(1, 4, 2, 2, 4, 4, 2, 2)

    with pytest.raises(ValueError, match="'masked' takes no route_weights; use"):
        routed_attention(
            q, k, v, routes, heads, backend='masked', route_weights=torch.rand(1, 4, 2)
        )
