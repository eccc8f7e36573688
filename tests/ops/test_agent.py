import pytest
import torch
from torch.autograd import gradcheck

from mmsparse.ops import agent_attention
from mmsparse.ops.attention import BACKENDS

CASES = {  # B, H, W, C, agents, heads
    'several': (2, 3, 5, 8, 4, 2),
    'one-agent': (1, 4, 3, 4, 1, 1),
    'more-agents-than-tokens': (1, 1, 2, 4, 9, 2),
}


def random_inputs(B, H, W, C, agents, heads, dtype=torch.float64):
    def draw(*shape):
        return torch.randn(shape, dtype=dtype, requires_grad=True)

    features = [draw(B, H, W, C) for _ in range(3)]
    biases = draw(heads, agents, H * W), draw(heads, H * W, agents)
    return (*features, draw(B, agents, C), *biases), heads


def call(tensors, heads, backend='auto'):
    *features, agent_bias, query_bias = tensors
    return agent_attention(*features, heads, agent_bias, query_bias, backend)


def oracle(q, k, v, agents, agent_bias, query_bias, heads):
    """Two softmaxes of sums, one head at a time."""
    B, H, W, C = q.shape
    width, outs = C // heads, []
    for m in range(heads):
        own = slice(m * width, (m + 1) * width)
        q_m, k_m, v_m = (x.reshape(B, H * W, C)[..., own] for x in (q, k, v))
        a_m = agents[..., own]
        gathered = torch.einsum('bad,bnd->ban', a_m, k_m) / width**0.5 + agent_bias[m]
        given = torch.einsum('bnd,bad->bna', q_m, a_m) / width**0.5 + query_bias[m]
        outs.append(given.softmax(-1) @ (gathered.softmax(-1) @ v_m))
    return torch.cat(outs, dim=-1).reshape(B, H, W, C)


@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_two_softmaxes_in_value_and_gradient(case, backend):
    tensors, heads = random_inputs(*case)
    expected = oracle(*tensors, heads)
    actual = call(tensors, heads, backend)
    cotangent = torch.randn_like(expected)

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
    )


def test_gradients_are_those_of_finite_differences():
    tensors, heads = random_inputs(1, 2, 2, 2, 2, 1)

    assert gradcheck(lambda *args: call(args, heads), tensors)


def test_without_biases_none_is_added():
    (*features, agent_bias, query_bias), heads = random_inputs(*CASES['several'])
    biases = (torch.zeros_like(agent_bias), torch.zeros_like(query_bias))

    torch.testing.assert_close(
        agent_attention(*features, heads), call((*features, *biases), heads)
    )


def test_bfloat16_stays_near_float32():
    tensors, heads = random_inputs(*CASES['several'], torch.float32)
    exact = call(tensors, heads)

    rounded = call([x.bfloat16() for x in tensors], heads)

    torch.testing.assert_close(rounded.float(), exact, atol=3e-2, rtol=3e-2)


def test_heads_that_do_not_divide_the_channels_are_rejected():
    (*features, _, _), _ = random_inputs(*CASES['several'])

    with pytest.raises(
        ValueError, match='num_heads must divide the channels, 8; got 3'
    ):
        agent_attention(*features, 3)
