"""Kernels for GPUs: run by Triton's interpreter where there is none, and compiled."""

import os
import subprocess
import sys

import pytest
import torch

from mmsparse.ops import routed_attention

pytest.importorskip('triton', minversion='3')  # has the interpreter

SHAPES = {  # B, R, L, L', D, C, K, heads
    'one-token-regions': (1, 4, 1, 1, 6, 6, 3, 3),
    'narrow-queries': (1, 5, 4, 4, 4, 12, 4, 2),
    'pooled-keys': (2, 4, 9, 4, 8, 8, 3, 2),
    'several-blocks': (1, 4, 66, 70, 20, 20, 2, 1),
}
# Compiles what a GPU would run, for one that need not be there.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops import routing_kernels as kernels

sizes = dict(QUERIES=49, KEYS=49, ROUTES=4, HEADS=2, KEY_WIDTH=32, VALUE_WIDTH=32)
sizes |= dict(BLOCK_Q=64, BLOCK_K=64, BLOCK_D=32, BLOCK_C=32, ROUNDED='ieee')
kinds = dict(scale='fp32', sums_ptr='*fp32', means_ptr='*fp32')
kinds |= dict.fromkeys(('rows_ptr', 'readers_ptr', 'ends_ptr'), '*i64')
kinds |= dict.fromkeys(sizes, 'constexpr')
for dtype in ('fp32', 'bf16'):
    for name in ('_forward', '_backward_queries', '_backward_keys'):
        kernel = getattr(kernels, name)
        types = {arg: kinds.get(arg, f'*{dtype}') for arg in kernel.arg_names}
        source = ASTSource(kernel, types, sizes)
        compiled = triton.compile(source, target=GPUTarget('cuda', 80, 32))
        assert compiled.asm['cubin'], (name, dtype)
        print(name, dtype)
"""


def random_inputs(B, R, L, L_kv, D, C, K, heads, dtype=torch.float64):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(dtype=dtype, device=device, requires_grad=True)
    q, k, v = (
        torch.randn(B, R, *size, **options) for size in ((L, D), (L_kv, D), (L_kv, C))
    )
    return q, k, v, torch.rand(B, R, R, device=device).topk(K).indices, heads


@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_equals_the_definition_in_value_and_gradient(shape):
    inputs = random_inputs(*shape)
    expected = routed_attention(*inputs, 0.7, 'reference')
    cotangent = torch.randn_like(expected)

    actual = routed_attention(*inputs, 0.7, 'triton')

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        torch.autograd.grad(actual, inputs[:3], cotangent),
        torch.autograd.grad(expected, inputs[:3], cotangent),
    )


def test_regions_that_none_reads_have_no_gradient():
    q, k, v, routes, heads = random_inputs(1, 3, 2, 2, 4, 4, 1, 1)
    routes = torch.zeros_like(routes)

    routed_attention(q, k, v, routes, heads, backend='triton').sum().backward()

    assert v.grad[0, 0].ne(0).all()
    assert v.grad[0, 1:].eq(0).all() and k.grad[0, 1:].eq(0).all()


def test_half_precision_stays_near_single():
    *tensors, routes, heads = random_inputs(1, 4, 5, 5, 8, 8, 2, 2, torch.float32)
    exact = routed_attention(*tensors, routes, heads)

    half = [x.detach().half() for x in tensors]
    rounded = routed_attention(*half, routes, heads, backend='triton')

    assert rounded.dtype == torch.float16
    torch.testing.assert_close(rounded.float(), exact, atol=2e-3, rtol=2e-3)


def test_strides_do_not_matter():
    q, k, v, routes, heads = random_inputs(1, 4, 3, 3, 4, 4, 2, 1)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]

    torch.testing.assert_close(
        routed_attention(*turned, routes, heads, backend='triton'),
        routed_attention(q, k, v, routes, heads, backend='triton'),
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


def test_a_cpu_is_refused(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    q, k, v, routes, heads = (
        x.cpu() if isinstance(x, torch.Tensor) else x
        for x in random_inputs(1, 3, 2, 2, 4, 4, 1, 1)
    )

    with pytest.raises(
        ValueError, match="needs tensors on a GPU; got q on cpu. Use 'a"
    ):
        routed_attention(q, k, v, routes, heads, backend='triton')


def test_a_missing_triton_is_told(monkeypatch):
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    monkeypatch.delitem(sys.modules, 'mmsparse.ops.routing_triton', raising=False)
    monkeypatch.setitem(sys.modules, 'triton', None)

    with pytest.raises(ValueError, match="backend='triton' needs triton, which comes"):
        routed_attention(*random_inputs(1, 3, 2, 2, 4, 4, 1, 1), backend='triton')


def test_factors_on_routes_are_refused():
    q, k, v, routes, heads = random_inputs(1, 3, 2, 2, 4, 4, 1, 1)

    with pytest.raises(ValueError, match="'triton' takes no route_weights; use"):
        routed_attention(
            q, k, v, routes, heads, backend='triton', route_weights=torch.rand(1, 3, 1)
        )
