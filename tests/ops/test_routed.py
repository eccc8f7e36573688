import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from mmsparse.ops import routed
from mmsparse.ops.attention import full_attention
from mmsparse.ops.regions import merge_regions, partition_regions
from mmsparse.ops.routed import attention_weights, routed_attention

SHAPES = {  # B, grid, region of queries, region of keys, D, C, K, heads
    'square': (2, (2, 2), (2, 3), (2, 3), 8, 8, 2, 2),
    'one region': (1, (1, 1), (1, 5), (1, 5), 4, 4, 1, 1),
    'one-token regions': (2, (3, 3), (1, 1), (1, 1), 6, 6, 3, 3),
    'few query channels': (1, (2, 3), (2, 2), (2, 2), 4, 12, 5, 2),
    'pooled keys': (2, (2, 2), (3, 3), (2, 2), 8, 8, 3, 4),
    'all regions': (1, (1, 5), (3, 1), (3, 1), 8, 8, 5, 2),
    'all regions, pooled': (2, (2, 2), (3, 3), (2, 2), 8, 12, 4, 4),
    'large regions': (1, (3, 3), (6, 11), (6, 11), 4, 4, 1, 1),
    'many tokens': (1, (2, 2), (4, 5), (4, 5), 4, 4, 2, 2),
}
BACKENDS = ('auto', 'reference', 'gathered', 'masked')  # triton has its own tests
WEIGHTED_BACKENDS = ('auto', 'reference', 'gathered')


@pytest.fixture(params=[1, routed.CHUNK_NUMEL], ids=['chunks', 'one chunk'])
def chunk_numel(request, monkeypatch):
    """Elements of a chunk; 1 makes chunks where regions have four routes and more."""
    monkeypatch.setattr(routed, 'CHUNK_NUMEL', request.param)


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def inputs(request):
    return random_inputs(*request.param)


def random_inputs(B, grid, region, kv_region, D, C, K, heads, dtype=torch.float64):
    def draw(region, channels):
        size = (grid[0] * region[0], grid[1] * region[1])
        return torch.randn(B, *size, channels, dtype=dtype, requires_grad=True)

    tensors = draw(region, D), draw(kv_region, D), draw(kv_region, C)
    R = grid[0] * grid[1]
    return *tensors, torch.rand(B, R, R).topk(K).indices, grid, heads


def loop_oracle(q, k, v, routes, grid, num_heads, scale, route_weights):
    """Attention of one region after another, with its keys and values weighted."""
    size = q.shape[1:3]
    q, k, v = (partition_regions(x, grid) for x in (q, k, v))
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
    return merge_regions(outs, grid, size)


def dense_oracle(q, k, v, routes, grid, num_heads, scale):
    """Full attention under a mask of the tokens in other regions."""
    size = q.shape[1:3]
    q, k, v = (partition_regions(x, grid) for x in (q, k, v))
    B, R, L, _ = q.shape
    routed_to = F.one_hot(routes, R).sum(2).bool()  # (B, R, R)
    mask = routed_to.repeat_interleave(L, 1).repeat_interleave(k.shape[2], 2)
    outs = []
    for q_h, k_h, v_h in zip(
        *(x.flatten(1, 2).chunk(num_heads, -1) for x in (q, k, v)), strict=True
    ):
        logits = scale * q_h @ k_h.transpose(1, 2)
        outs.append(logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v_h)
    return merge_regions(torch.cat(outs, -1).view(B, R, L, -1), grid, size)


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
@pytest.mark.parametrize('backend', WEIGHTED_BACKENDS)
def test_weighted_regions_equal_the_loop_in_value_and_gradient(inputs, backend):
    *tensors, routes, _, _ = inputs
    weights = torch.rand(routes.shape, dtype=torch.float64, requires_grad=True)
    expected = loop_oracle(*inputs, 0.7, weights)
    actual = routed_attention(*inputs, 0.7, weights, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, [*tensors, weights], cotangent),
        torch.autograd.grad(expected, [*tensors, weights], cotangent),
    )


SMALL = (1, (1, 3), (1, 2), (2, 1), 2, 4, 2, 2)


@pytest.mark.parametrize('backend', BACKENDS)
def test_gradients_equal_finite_differences(backend):
    *tensors, routes, grid, heads = random_inputs(*SMALL)

    assert gradcheck(
        lambda q, k, v: routed_attention(q, k, v, routes, grid, heads, backend=backend),
        tensors,
    )


@pytest.mark.parametrize('backend', WEIGHTED_BACKENDS)
def test_gradients_of_weights_equal_finite_differences(backend):
    *tensors, routes, grid, heads = random_inputs(*SMALL)
    weights = torch.rand(routes.shape, dtype=torch.float64, requires_grad=True)

    assert gradcheck(
        lambda q, k, v, weights: routed_attention(
            q, k, v, routes, grid, heads, None, weights, backend
        ),
        [*tensors, weights],
    )


def test_all_regions_routed_equals_full_attention():
    q, k, v, _, grid, heads = random_inputs(*SHAPES['square'])
    routes = torch.stack([torch.randperm(4) for _ in range(8)]).view(2, 4, 4)

    torch.testing.assert_close(
        routed_attention(q, k, v, routes, grid, heads),
        full_attention(q, k, v, heads, scale=8**-0.5),
    )


@pytest.mark.parametrize('backend', BACKENDS)
def test_the_output_does_not_depend_on_other_regions(backend):
    q, k, v, routes, grid, heads = random_inputs(*SHAPES['few query channels'])
    routes = routes[..., :2]
    before = routed_attention(q, k, v, routes, grid, heads, backend=backend)
    other = next(r for r in range(6) if r not in routes[0, 0])
    k, v = (
        merge_regions(
            partition_regions(x, grid).index_fill(1, torch.tensor(other), 1e3),
            grid,
            x.shape[1:3],
        )
        for x in (k, v)
    )

    after = routed_attention(q, k, v, routes, grid, heads, backend=backend)

    assert torch.equal(before[:, :2, :2], after[:, :2, :2])  # region 0
    assert not torch.equal(before, after)


@pytest.mark.parametrize('backend', BACKENDS)
def test_bfloat16_is_close_to_float32(backend):
    *tensors, routes, grid, heads = random_inputs(*SHAPES['square'], torch.float32)
    exact = routed_attention(*tensors, routes, grid, heads)
    tensors = [x.bfloat16() for x in tensors]

    rounded = routed_attention(*tensors, routes, grid, heads, backend=backend)

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_attention_weights_sum_to_one():
    q, k = torch.randn(2, 4, 6, 8), torch.randn(2, 4, 5, 8)
    routes = torch.rand(2, 4, 4).topk(2).indices

    weights = attention_weights(q, k, routes, 2, scale=0.3)

    assert weights.shape == (2, 4, 2, 6, 2 * 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_heads_that_do_not_divide_the_channels_raise():
    *inputs, _ = random_inputs(1, (2, 2), (1, 2), (1, 2), 6, 8, 2, 2)

    with pytest.raises(ValueError, match=r'q and k, 6, and of v, 8; got 4'):
        routed_attention(*inputs, num_heads=4)


def test_an_unknown_backend_raises():
    with pytest.raises(ValueError, match="'gathered', 'masked'.*got 'fast'"):
        routed_attention(*random_inputs(*SMALL), backend='fast')


def test_a_mask_raises_for_weights():
    inputs = random_inputs(*SMALL)

    with pytest.raises(ValueError, match="'masked' needs hard routing, without route"):
        routed_attention(*inputs, None, torch.rand(1, 3, 2), 'masked')
