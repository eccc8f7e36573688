"""Kernels of neighborhood attention: run by Triton's interpreter, and compiled."""

import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import AotEagerAndRecordGraphs
from torch._subclasses import FakeTensorMode

from mmsparse.ops import neighborhood, neighborhood_attention

pytest.importorskip('triton', minversion='3')  # has the interpreter
kernels = pytest.importorskip('mmsparse.ops.triton.neighborhood')

CASES = {  # B, H, W, C, heads, kernel
    'one-token': (1, 1, 1, 4, 1, 1),
    'size-of-the-kernel': (2, 5, 5, 6, 2, 5),
    'several-tiles': (1, 10, 17, 5, 1, 3),
    'several-blocks-across': (1, 9, 18, 4, 1, 9),
}
OPS = torch.ops.mmsparse
# Compiles the kernels for GPUs without having one: all launches with bfloat16 for
# Hopper, the first with float32 for Ampere.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops.triton import neighborhood as kernels

sizes = dict(HEADS=3, CHANNELS=32, SCALE=0.2, KERNEL=7, SIDE=16, BLOCK_C=32)
single = ('sums_ptr', 'means_ptr', 'partial_ptr', 'table_ptr')
cases = [('bf16', 90, 'tf32', launch) for launch in kernels.LAUNCHES]
cases += [('fp32', 80, 'tf32x3', kernels._launches(32, 4)[0])]
for dtype, capability, precision, launch in cases:
    options = launch.options()
    constants = {k: v for k, v in options.items() if k.isupper()}
    constants |= sizes | dict(PRECISION=precision)
    for kernel in (kernels._forward, kernels._backward_queries, kernels._backward_keys):
        signature = {}
        for name in kernel.arg_names:
            pointer = '*fp32' if name in single else f'*{dtype}'
            signature[name] = pointer if name.endswith('_ptr') else 'i32'
        signature |= dict.fromkeys(constants, 'constexpr')
        compiled = triton.compile(
            ASTSource(kernel, signature, constants),
            target=GPUTarget('cuda', capability, 32),
            options=dict(num_warps=launch.num_warps, num_stages=launch.num_stages),
        )
        assert compiled.asm['cubin'], (dtype, launch)
        assert compiled.metadata.shared < 99 * 1024, (dtype, launch)
        print('compiled')
"""


def random_inputs(B, H, W, C, heads, kernel, dtype=torch.float64):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(dtype=dtype, device=device, requires_grad=True)
    span = 2 * kernel - 1
    return (
        *(torch.randn(B, H, W, C, **options) for _ in range(3)),
        torch.randn(heads, span, span, **options),
    )


def assert_equals_the_reference(tensors, **tolerance):
    expected = neighborhood_attention(*tensors, backend='reference')
    cotangent = torch.randn_like(expected)

    actual = neighborhood_attention(*tensors, backend='triton')

    torch.testing.assert_close(actual, expected, **tolerance)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        **tolerance,
    )


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_reference_in_value_and_gradient(case):
    assert_equals_the_reference(random_inputs(*case))


@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float32, 1e-4), (torch.bfloat16, 4e-2)], ids=str
)
def test_equals_the_reference_in_other_dtypes(dtype, tolerance):
    tensors = random_inputs(1, 6, 9, 8, 2, 3, dtype)

    assert_equals_the_reference(tensors, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('launch', kernels.LAUNCHES[1:], ids=str)
def test_every_launch_equals_the_reference(monkeypatch, launch):
    monkeypatch.setattr(kernels, '_launches', lambda *sizes: (launch,))

    assert_equals_the_reference(random_inputs(1, 9, 8, 4, 1, 7))


def test_programs_with_several_tiles_sum_the_gradient_of_the_table(monkeypatch):
    monkeypatch.setattr(kernels, 'MAX_PARTIALS', 2)

    assert_equals_the_reference(random_inputs(2, 9, 5, 4, 1, 3))


def test_a_table_in_single_precision_is_for_queries_in_half():
    *tensors, table = random_inputs(1, 4, 5, 8, 2, 3, torch.float32)
    half = [x.detach().half() for x in tensors]

    rounded = neighborhood_attention(*half, table, backend='triton')
    rounded.float().sum().backward()

    exact = neighborhood_attention(*tensors, table)
    assert rounded.dtype == torch.float16 and table.grad.dtype == torch.float32
    torch.testing.assert_close(rounded.float(), exact, atol=2e-3, rtol=2e-3)


def test_chunks_of_a_projection_are_read_in_place():
    qkv, table = random_inputs(2, 4, 5, 12, 1, 3)[::3]
    chunks = dict(zip('qkv', qkv.chunk(3, dim=-1), strict=True))

    arguments = kernels._shared_arguments(table, **chunks)

    for name, chunk in chunks.items():
        assert arguments[f'{name}_ptr'].data_ptr() == chunk.data_ptr()
        assert arguments[f'{name}_stride'] == 12


@pytest.mark.parametrize('layout', ['chunks', 'channels-first', 'columns-first'])
def test_strides_do_not_matter(layout):
    *tensors, table = random_inputs(1, 4, 9, 4, 2, 3)
    if layout == 'chunks':
        tensors = torch.cat(tensors, dim=-1).chunk(3, dim=-1)
    else:
        axis = 3 if layout == 'channels-first' else 2
        tensors = [
            x.transpose(1, axis).contiguous().transpose(1, axis) for x in tensors
        ]

    assert_equals_the_reference((*tensors, table))


def test_the_operators_are_registered_as_torch_expects():
    tensors = random_inputs(1, 3, 3, 2, 1, 3)
    torch.library.opcheck(kernels._attend, tensors)

    tensors = [x.detach() for x in tensors]
    out, sums = kernels._attend(*tensors)
    torch.library.opcheck(
        kernels._backward,
        (out, *tensors, out, sums),
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_the_compiler_sees_one_node_forward_and_one_backward():
    tensors = random_inputs(1, 3, 5, 4, 2, 3)
    graphs = AotEagerAndRecordGraphs()
    torch.compiler.reset()
    compiled = torch.compile(neighborhood_attention, fullgraph=True, backend=graphs)

    out = compiled(*tensors, backend='triton')
    gradients = torch.autograd.grad(out.sum(), tensors)

    def operators(graph):
        return [x.target for x in graph.graph.nodes if 'mmsparse' in str(x.target)]

    assert operators(graphs.fw_graphs[0]) == [OPS.neighborhood_attention.default]
    assert operators(graphs.bw_graphs[0]) == [
        OPS.neighborhood_attention_backward.default
    ]
    expected = neighborhood_attention(*tensors, backend='reference')
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), tensors))


def test_auto_takes_it_on_a_gpu_up_to_wide_heads(monkeypatch):
    taken = []
    monkeypatch.setattr(
        neighborhood, '_triton', lambda q, *_: taken.append(q.shape[-1])
    )
    with FakeTensorMode():
        for channels in (128, 256):
            q, k, v = torch.empty(3, 1, 3, 3, channels, device='cuda')
            neighborhood_attention(q, k, v, torch.empty(1, 5, 5, device='cuda'))

    assert taken == [128]


def test_auto_takes_what_was_measured(monkeypatch):
    calls = []

    def measured(op, q, known, **sizes):
        calls.append((op, known, sizes))
        return 'reference'

    monkeypatch.setattr(neighborhood, 'fastest_backend', measured)
    monkeypatch.setattr(neighborhood, '_tiled', None)
    q, k, v, table = (x.cpu() for x in random_inputs(1, 5, 4, 8, 2, 3))

    neighborhood_attention(q, k, v, table)

    sizes = dict(tokens=20, kernel=3, head_dim=4)
    assert calls == [('neighborhood_attention', ('tiled',), sizes)]


def test_wide_heads_are_rejected():
    with pytest.raises(ValueError, match='heads of at most 128 channels; got 129'):
        neighborhood_attention(*random_inputs(1, 1, 1, 129, 1, 1), backend='triton')


def test_a_cpu_is_rejected(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    tensors = [x.cpu() for x in random_inputs(1, 3, 3, 4, 1, 3)]

    with pytest.raises(ValueError, match="'triton' needs tensors on a GPU; got one on"):
        neighborhood_attention(*tensors, backend='triton')


def test_wide_heads_have_small_blocks():
    assert kernels._launches(32, itemsize=2) == kernels.LAUNCHES
    assert kernels._launches(32, itemsize=4) == kernels.LAUNCHES[1:]
    assert kernels._launches(128, itemsize=4) == kernels.LAUNCHES[-1:]


def test_the_kernels_compile_for_gpus():
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
    assert len(done.stdout.splitlines()) == 3 * (len(kernels.LAUNCHES) + 1)
