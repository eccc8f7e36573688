"""Kernels for GPUs: run by Triton's interpreter without one, and compiled."""

import os
import subprocess
import sys

import pytest
import torch

from mmsparse.ops import bilevel_routing_attention
from mmsparse.ops.routed import routed_attention

pytest.importorskip('triton', minversion='3')  # has the interpreter

CASES = {  # B, grid, region of queries, of keys, D, C, K, heads
    'one-token-regions': (1, (2, 2), (1, 1), (1, 1), 6, 6, 3, 3),
    'few-query-channels': (1, (1, 5), (2, 2), (2, 2), 4, 12, 4, 2),
    'pooled-keys': (2, (2, 2), (3, 3), (2, 2), 8, 8, 3, 2),
    'several-blocks': (1, (2, 2), (6, 11), (7, 10), 20, 20, 2, 1),
}
# Compiles the kernels for a GPU without having one.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops.triton import routed as kernels

sizes = dict(QUERIES=49, KEYS=49, ROUTES=4, HEADS=2, KEY_WIDTH=32, VALUE_WIDTH=32)
sizes |= dict(BLOCK_Q=64, BLOCK_K=64, BLOCK_D=32, BLOCK_C=32, PRECISION='ieee')
types = dict(scale='fp32', sums_ptr='*fp32', means_ptr='*fp32')
types |= dict.fromkeys(('routes_ptr', 'readers_ptr', 'ends_ptr'), '*i64')
types |= dict.fromkeys(sizes, 'constexpr')
for dtype in ('fp32', 'bf16'):
    for name in ('_forward', '_backward_queries', '_backward_keys'):
        kernel = getattr(kernels, name)
        signature = {arg: types.get(arg, f'*{dtype}') for arg in kernel.arg_names}
        source = ASTSource(kernel, signature, sizes)
        compiled = triton.compile(source, target=GPUTarget('cuda', 80, 32))
        assert compiled.asm['cubin'], (name, dtype)
        print(name, dtype)
"""


def random_inputs(B, grid, region, kv_region, D, C, K, heads, dtype=torch.float64):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(dtype=dtype, device=device, requires_grad=True)
    q, k, v = (
        torch.randn(B, grid[0] * h, grid[1] * w, channels, **options)
        for (h, w), channels in ((region, D), (kv_region, D), (kv_region, C))
    )
    R = grid[0] * grid[1]
    routes = torch.rand(B, R, R, device=device).topk(K).indices
    return q, k, v, routes, grid, heads


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_reference_in_value_and_gradient(case):
    inputs = random_inputs(*case)
    expected = routed_attention(*inputs, 0.7, backend='reference')
    cotangent = torch.randn_like(expected)

    actual = routed_attention(*inputs, 0.7, backend='triton')

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs[:3], cotangent),
        torch.autograd.grad(expected, inputs[:3], cotangent),
    )


def test_regions_that_are_in_no_route_have_no_gradient():
    q, k, v, routes, grid, heads = random_inputs(1, (3, 1), (1, 2), (1, 2), 4, 4, 1, 1)
    routes = torch.zeros_like(routes)

    routed_attention(q, k, v, routes, grid, heads, backend='triton').sum().backward()

    assert v.grad[0, 0].ne(0).all()
    assert v.grad[0, 1:].eq(0).all() and k.grad[0, 1:].eq(0).all()


def test_half_precision_stays_near_single():
    *tensors, routes, grid, heads = random_inputs(
        1, (2, 2), (1, 5), (1, 5), 8, 8, 2, 2, torch.float32
    )
    exact = routed_attention(*tensors, routes, grid, heads)

    half = [x.detach().half() for x in tensors]
    rounded = routed_attention(*half, routes, grid, heads, backend='triton')

    assert rounded.dtype == torch.float16
    torch.testing.assert_close(rounded.float(), exact, atol=2e-3, rtol=2e-3)


def test_strides_do_not_matter():
    q, k, v, *others = random_inputs(1, (2, 2), (1, 3), (1, 3), 4, 4, 2, 1)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]

    torch.testing.assert_close(
        routed_attention(*transposed, *others, backend='triton'),
        routed_attention(q, k, v, *others, backend='triton'),
    )


def test_the_kernels_compile_for_a_gpu():
    pytest.importorskip('triton.backends.nvidia')
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}

    done = subprocess.run(
        [sys.executable, '-c', COMPILE],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 6


def test_a_cpu_is_rejected(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    inputs = (
        x.cpu() if isinstance(x, torch.Tensor) else x
        for x in random_inputs(1, (3, 1), (1, 2), (1, 2), 4, 4, 1, 1)
    )

    with pytest.raises(
        ValueError, match="needs tensors on a GPU; got one on cpu. Use 'a"
    ):
        routed_attention(*inputs, backend='triton')


def test_a_missing_triton_is_reported(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.setitem(sys.modules, 'triton', None)

    with pytest.raises(ValueError, match="backend='triton' needs triton, which comes"):
        routed_attention(
            *random_inputs(1, (3, 1), (1, 2), (1, 2), 4, 4, 1, 1), backend='triton'
        )


def test_route_weights_are_rejected():
    inputs = random_inputs(1, (3, 1), (1, 2), (1, 2), 4, 4, 1, 1)

    with pytest.raises(ValueError, match="'triton' needs hard routing, without route_"):
        routed_attention(*inputs, backend='triton', route_weights=torch.rand(1, 3, 1))


def test_the_whole_op_equals_its_reference():
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    q, k, v = torch.randn(3, 1, 7, 5, 4, dtype=torch.float64, device=device)
    arguments = (q, k, v, 2, 3, 3)

    torch.testing.assert_close(
        bilevel_routing_attention(*arguments, backend='triton'),
        bilevel_routing_attention(*arguments, backend='reference'),
    )
