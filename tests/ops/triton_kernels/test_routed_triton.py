"""Kernels for GPUs: run by Triton's interpreter without one, and compiled."""

import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from mmsparse.ops import bilevel_routing_attention, routed
from mmsparse.ops.routed import routed_attention

pytest.importorskip('triton', minversion='3')  # has the interpreter

CASES = {  # B, grid, region of queries, of keys, D, C, K, heads
    'one token': (1, (2, 2), (1, 1), (1, 1), 6, 6, 3, 3),
    '4 tokens, few query channels': (1, (1, 5), (2, 2), (2, 2), 4, 12, 4, 2),
    '9 tokens, a step ends within a region': (1, (3, 2), (3, 3), (3, 3), 8, 8, 4, 1),
    '9 tokens, pooled keys': (2, (2, 2), (3, 3), (2, 2), 8, 8, 3, 2),
    '49 tokens': (1, (1, 3), (7, 7), (7, 7), 6, 6, 2, 2),
    '77 tokens, two tiles': (1, (2, 1), (7, 11), (7, 10), 20, 20, 1, 1),
}
# Compiles the kernels for GPUs without having one.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops.triton import routed as kernels
from mmsparse.ops.triton._common import Launch

KERNELS = ('_forward', '_backward_queries', '_backward_keys')
TYPES = dict(scale='fp32', starts_ptr='*i32')
TYPES |= dict.fromkeys(('routes_ptr', 'sorted_ptr', 'order_ptr'), '*i64')
for name in ('sums_ptr', 'stats_ptr', 'partial_k_ptr', 'partial_v_ptr'):
    TYPES[name] = '*fp32'


def compile_kernel(name, launch, dtype, precision, capability):
    kernel = getattr(kernels, name)
    constants = dict(HEADS=2, KEY_CHANNELS=32, VALUE_CHANNELS=32)
    constants |= dict(BLOCK_D=32, BLOCK_C=32, PRECISION=precision)
    constants |= dict(TILE=launch.tile, STEP=launch.step)
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    signature, attributes = {}, {}
    for i, argument in enumerate(kernel.arg_names):
        default = f'*{dtype}' if argument.endswith('_ptr') else 'i32'
        signature[argument] = TYPES.get(argument, default)
        if argument.endswith(('_ptr', '_stride')):
            attributes[i,] = [['tt.divisibility', 16]]
    signature |= dict.fromkeys(constants, 'constexpr')
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget('cuda', capability, 32),
        options=dict(num_warps=launch.num_warps, num_stages=launch.num_stages),
    )
    assert compiled.asm['cubin'] and compiled.metadata.shared <= 99 * 1024
    print(name, *launch, dtype, precision, capability)


for tokens, listed, dtype, precision, capability in (
    (64, 256, 'bf16', 'tf32', 90),
    (16, 64, 'fp32', 'tf32', 80),
    (16, 64, 'fp32', 'ieee', 80),
):
    token_bytes = 64 * (2 if dtype == 'bf16' else 4)
    table = kernels.launch_table(tokens, listed, token_bytes, precision == 'ieee')
    for name in KERNELS:
        compile_kernel(name, table[0], dtype, precision, capability)
compile_kernel('_add_segments', Launch(64, 0, 4, 1), 'bf16', 'tf32', 80)
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


@pytest.mark.parametrize(('num_routes', 'min_segment'), [(1, 1), (2, 1), (1, 128)])
def test_a_region_that_all_others_read_gets_all_gradients(
    num_routes, min_segment, monkeypatch
):
    """With segments of 2 to 4 readers or all 7: up to four segments of a region."""
    from mmsparse.ops.triton import routed as kernels

    monkeypatch.setattr(kernels, 'MIN_SEGMENT', min_segment)
    q, k, v, routes, *others = random_inputs(
        2, (1, 7), (1, 2), (1, 1), 4, 4, num_routes, 1
    )
    routes[0, :, 0] = 3
    routes[0, :, 1:] = 5
    routes[1, 2:, 0] = 6
    routes[1, 2:, 1:] = 0
    expected = routed_attention(q, k, v, routes, *others, backend='reference')
    cotangent = torch.randn_like(expected)

    actual = routed_attention(q, k, v, routes, *others, backend='triton')

    torch.testing.assert_close(
        torch.autograd.grad(actual, (q, k, v), cotangent),
        torch.autograd.grad(expected, (q, k, v), cotangent),
    )


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)], ids=str
)
def test_lower_precision_stays_near_double(dtype, tolerance):
    *tensors, routes, grid, heads = random_inputs(1, (2, 2), (1, 5), (1, 5), 8, 8, 2, 2)
    lower = [x.detach().to(dtype).requires_grad_() for x in tensors]

    def value_and_gradients(inputs, backend):
        out = routed_attention(*inputs, routes, grid, heads, backend=backend)
        return out, *torch.autograd.grad(out.sum(), inputs)

    exact = value_and_gradients(tensors, 'reference')
    rounded = value_and_gradients(lower, 'triton')

    assert {x.dtype for x in rounded} == {dtype}
    rounded = [x.double() for x in rounded]
    torch.testing.assert_close(rounded, list(exact), atol=tolerance, rtol=tolerance)


def test_strides_do_not_matter():
    q, k, v, *others = random_inputs(1, (2, 2), (1, 3), (1, 3), 4, 4, 2, 1)
    transposed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    channels_first = [x.movedim(3, 1).contiguous().movedim(1, 3) for x in (q, k, v)]
    expected = routed_attention(q, k, v, *others, backend='triton')

    for strided in (transposed, channels_first):
        out = routed_attention(*strided, *others, backend='triton')
        torch.testing.assert_close(out, expected)


def test_views_of_one_projection_are_read_without_a_copy():
    from mmsparse.ops.triton._common import token_matrix

    q, k, v, *others = random_inputs(2, (2, 2), (1, 2), (1, 2), 4, 4, 2, 1)
    qkv = torch.cat([q, k, v], -1).detach().requires_grad_()
    views = qkv.chunk(3, dim=-1)
    expected = routed_attention(q, k, v, *others, backend='triton')
    cotangent = torch.randn_like(expected)

    actual = routed_attention(*views, *others, backend='triton')

    assert [token_matrix(x).data_ptr() for x in views] == [x.data_ptr() for x in views]
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad(expected, (q, k, v), cotangent)
    (gradient,) = torch.autograd.grad(actual, qkv, cotangent)
    torch.testing.assert_close(gradient, torch.cat(gradients, -1))


def test_the_operators_are_registered_as_torch_expects():
    from mmsparse.ops.triton import routed as kernels

    q, k, v, routes, grid, heads = random_inputs(1, (1, 2), (1, 1), (1, 1), 2, 2, 1, 1)
    arguments = (q, k, v, routes, grid[1], heads, 0.5)
    torch.library.opcheck(kernels._routed_attention, arguments)

    out, sums = (x.detach() for x in kernels._routed_attention(*arguments))
    arguments = (out, out, sums, *(x.detach() for x in (q, k, v)), *arguments[3:])
    torch.library.opcheck(
        kernels._routed_attention_backward,
        arguments,
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_the_compiler_sees_one_node():
    torch.compiler.reset()
    q, k, v, *others = random_inputs(1, (1, 2), (1, 1), (1, 1), 2, 2, 1, 1)
    counter = CompileCounterWithBackend('aot_eager')

    def attend(q, k, v):
        return routed_attention(q, k, v, *others, backend='triton')

    actual = torch.compile(attend, fullgraph=True, backend=counter)(q, k, v)

    (graph,) = counter.graphs
    calls = [x for x in graph.graph.nodes if 'mmsparse' in str(x.target)]
    assert len(calls) == 1
    torch.testing.assert_close(actual, attend(q, k, v))
    actual.sum().backward()
    assert v.grad.ne(0).any()


@pytest.mark.parametrize(
    ('device', 'num_routes', 'expected'),
    [
        ('cuda', 3, 'triton'),
        ('cuda', 4, 'masked'),  # full attention
        ('cpu', 3, 'masked'),
    ],
)
def test_auto_prefers_the_kernels_on_a_gpu(device, num_routes, expected):
    torch.compiler.reset()
    counter = CompileCounterWithBackend('eager')

    @torch.compile(fullgraph=True, backend=counter)
    def attend(x, routes):
        return routed_attention(x, x, x, routes, (2, 2), 2)

    with FakeTensorMode():
        x = torch.empty(1, 4, 4, 8, device=device)
        routes = torch.empty(1, 4, num_routes, dtype=torch.int64, device=device)
        assert routed._choose_backend(x, x, routes, 2) == expected
        assert attend(x, routes).device.type == device

    (graph,) = counter.graphs
    assert ('mmsparse.routed_attention' in graph.code) == (expected == 'triton')


def test_auto_takes_what_was_measured(monkeypatch):
    asked = []
    q, k, v, *others = random_inputs(1, (2, 2), (2, 3), (1, 2), 8, 4, 3, 2)

    def fastest(op, x, known, **sizes):
        asked.append((op, known, sizes))
        return 'gathered'

    monkeypatch.setattr(routed, 'fastest_backend', fastest)
    monkeypatch.setattr(routed, '_gathered', lambda *_: 'gathered')

    assert routed_attention(q.cpu(), k.cpu(), v.cpu(), *others) == 'gathered'

    sizes = dict(regions=4, tokens=6, keys=6, head_dim=4)
    assert asked == [('routed_attention', ('gathered', 'masked'), sizes)]


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
    assert len(done.stdout.splitlines()) == 10


def test_a_grid_that_does_not_divide_the_feature_map_is_rejected():
    q, k, v, routes, _, heads = random_inputs(1, (2, 2), (2, 2), (2, 2), 4, 4, 2, 2)

    with pytest.raises(ValueError, match='grid=3x2 must divide .* of 4x4'):
        routed_attention(q, k, v, routes, (3, 2), heads, backend='triton')


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
