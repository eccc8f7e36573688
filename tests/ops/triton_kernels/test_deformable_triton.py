"""Kernels for GPUs: run by Triton's interpreter without one, and compiled."""

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from mmsparse.ops import deformable, deformable_attention
from mmsparse.ops.deformable import query_axis_v2022, query_axis_v2023

pytest.importorskip('triton', minversion='3.3')  # has the interpreter and tl.gather
kernels = pytest.importorskip('mmsparse.ops.triton.deformable')

CASES = {  # B, H, W, C, Hk, Wk, heads, groups, Ty, Tx, query_axis
    'groups': (2, 4, 3, 6, 3, 2, 2, 2, 7, 5, query_axis_v2023),
    'heads-of-a-group': (1, 3, 4, 6, 2, 3, 2, 1, 5, 7, query_axis_v2022),
    'one-token': (1, 1, 1, 4, 1, 1, 1, 1, 1, 1, query_axis_v2023),
    'one-row': (1, 1, 5, 4, 1, 3, 2, 1, 3, 9, query_axis_v2022),
    'one-entry-wide': (1, 3, 4, 4, 2, 2, 1, 1, 5, 1, query_axis_v2023),
    'coarse-table': (1, 6, 17, 4, 2, 3, 1, 1, 5, 4, query_axis_v2023),
    'several-blocks': (1, 4, 70, 20, 5, 14, 1, 1, 7, 15, query_axis_v2022),
    'several-tiles': (1, 3, 2, 4, 1, 2, 1, 1, 20, 37, query_axis_v2023),
}
# Compiles the kernels for GPUs without having one, and prints their shared memory.
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops.triton import deformable as kernels

sizes = dict(TABLE_H=27, TABLE_W=27, HEADS=12, GROUPS=3, DIM=32, SCALE=32**-0.5)
sizes |= dict(BLOCK_D=32)
types = dict.fromkeys([*kernels.SIZES, 'q_stride', 'k_stride', 'v_stride'], 'i32')
for name in ('locations', 'table', 'rows', 'columns', 'sums', 'means'):
    types[f'{name}_ptr'] = '*fp32'
types |= dict(grad_locations_ptr='*fp32', grad_table_ptr='*fp32')


def compile(name, dtype, arch, launch, **blocks):
    constants = sizes | blocks
    constants['PRECISION'] = 'ieee' if dtype == 'fp32' else 'tf32'
    kernel = getattr(kernels, name)
    known = types | dict.fromkeys(constants, 'constexpr')
    signature = {arg: known.get(arg, f'*{dtype}') for arg in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    options = dict(num_warps=launch.num_warps, num_stages=launch.num_stages)
    compiled = triton.compile(source, GPUTarget('cuda', arch, 32), options)
    assert compiled.asm['cubin']
    print(name, dtype, arch, compiled.metadata.shared)


def compile_all(dtype, arch, count, row_bytes):
    for x in kernels.forward_launches(row_bytes)[:count]:
        compile('_forward', dtype, arch, x, BLOCK_Q=x.tile, BLOCK_K=x.step)
    for x in kernels.backward_launches(row_bytes)[:count]:
        compile('_backward_queries', dtype, arch, x, BLOCK_Q=x.tile, BLOCK_K=x.step)
    for x in kernels.keys_launches(row_bytes)[:count]:
        compile('_backward_keys', dtype, arch, x, BLOCK_Q=x.step, BLOCK_K=x.tile)
    for x in kernels.table_launches(row_bytes, (32, 32), 14)[:count]:
        blocks = dict(BLOCK_Q=x.tile, BLOCK_K=x.step, BLOCK_Y=32, BLOCK_X=32)
        compile('_backward_table', dtype, arch, x, **blocks)


compile_all('bf16', 80, 1, 64)
compile_all('bf16', 90, 2, 64)
first = kernels.forward_launches(128)[0]
compile('_forward', 'fp32', 90, first, BLOCK_Q=first.tile, BLOCK_K=first.step)
"""


def random_inputs(
    B, H, W, C, Hk, Wk, heads, groups, Ty, Tx, query_axis, dtype=torch.float64
):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(dtype=dtype, device=device, requires_grad=True)
    q = torch.randn(B, H, W, C, **options)
    k, v = (torch.randn(B, Hk, Wk, C, **options) for _ in range(2))
    locations = 2.4 * torch.rand(B, groups, Hk, Wk, 2, dtype=dtype, device=device) - 1.2
    table = torch.randn(heads, Ty, Tx, **options)
    axes = query_axis(H, locations), query_axis(W, locations)
    return q, k, v, locations.requires_grad_(), table, axes


def assert_equals_the_reference(tensors, axes, **tolerances):
    expected = deformable_attention(*tensors, axes, 'reference')
    cotangent = torch.randn_like(expected)

    actual = deformable_attention(*tensors, axes, 'triton')

    torch.testing.assert_close(actual, expected, **tolerances)
    torch.testing.assert_close(
        torch.autograd.grad(actual, tensors, cotangent),
        torch.autograd.grad(expected, tensors, cotangent),
        **tolerances,
    )


@pytest.fixture(autouse=True)
def one_part(monkeypatch):
    """Do not divide the queries into parts, which takes the interpreter longer."""
    monkeypatch.setattr(kernels, 'MIN_PROGRAMS', 1)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_reference_in_value_and_gradient(case, monkeypatch):
    monkeypatch.setattr(kernels, 'MAX_TABLE_BLOCK', 16)
    *tensors, axes = random_inputs(*case)

    assert_equals_the_reference(tensors, axes)


@pytest.mark.parametrize('case', ['groups', 'coarse-table'])
def test_parts_of_the_queries_are_added(case, monkeypatch):
    monkeypatch.setattr(kernels, 'MIN_PROGRAMS', 5)
    *tensors, axes = random_inputs(*CASES[case])

    assert_equals_the_reference(tensors, axes)


def test_wide_heads_have_small_blocks():
    *tensors, axes = random_inputs(1, 5, 18, 40, 5, 7, 1, 1, 9, 9, query_axis_v2023)

    assert_equals_the_reference(tensors, axes)


def test_slopes_at_the_entries_of_the_table_are_those_to_the_right():
    """Queries, keys and entries are at multiples of 1/2, without rounding."""
    *tensors, axes = random_inputs(1, 5, 5, 4, 5, 5, 2, 1, 9, 9, query_axis_v2023)
    pixels = torch.stack(torch.meshgrid(*axes, indexing='ij'), -1)
    tensors[3] = pixels[None, None].requires_grad_()

    assert_equals_the_reference(tensors, axes)


def test_single_precision_stays_near_the_reference():
    *tensors, axes = random_inputs(
        1, 5, 6, 8, 3, 4, 2, 2, 9, 11, query_axis_v2023, torch.float32
    )

    assert_equals_the_reference(tensors, axes, atol=1e-4, rtol=1e-4)


def test_bfloat16_features_stay_near_single_precision():
    *tensors, axes = random_inputs(
        1, 5, 6, 8, 3, 4, 2, 2, 9, 11, query_axis_v2023, torch.float32
    )
    exact = deformable_attention(*tensors, axes, 'reference')
    cotangent = torch.randn_like(exact)
    expected = torch.autograd.grad(exact, tensors, cotangent)

    rounded_features = [x.detach().bfloat16().requires_grad_() for x in tensors[:3]]
    inputs = [*rounded_features, *tensors[3:]]
    rounded = deformable_attention(*inputs, axes, 'triton')
    gradients = torch.autograd.grad(rounded, inputs, cotangent.bfloat16())

    assert rounded.dtype == torch.bfloat16
    assert [x.dtype for x in gradients] == [x.dtype for x in inputs]
    for actual, reference in zip(
        (rounded, *gradients), (exact, *expected), strict=True
    ):
        torch.testing.assert_close(actual.float(), reference, atol=5e-2, rtol=5e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='the interpreter always is')
def test_results_are_bitwise_reproducible():
    *tensors, axes = random_inputs(*CASES['groups'])

    first, second = (
        torch.autograd.grad(
            deformable_attention(*tensors, axes, 'triton').square().sum(), tensors
        )
        for _ in range(2)
    )

    torch.testing.assert_close(first, second, atol=0, rtol=0)


def test_strides_do_not_matter():
    q, k, v, *others = random_inputs(*CASES['groups'])
    expected = deformable_attention(q, k, v, *others, 'triton')
    k, v = torch.cat([k, v], dim=-1).chunk(2, dim=-1)  # of one projection
    q = q.transpose(1, -1).contiguous().transpose(1, -1)

    actual = deformable_attention(q, k, v, *others, 'triton')

    torch.testing.assert_close(actual, expected)


def test_locations_that_are_nan_give_nan():
    *tensors, axes = random_inputs(*CASES['groups'])
    tensors[3] = torch.full_like(tensors[3], torch.nan, requires_grad=True)

    with pytest.warns(RuntimeWarning) if not tensors[0].is_cuda else nullcontext():
        out = deformable_attention(*tensors, axes, 'triton')
        out.sum().backward()

    assert out.isnan().all()


def test_torch_checks_the_operators():
    *tensors, axes = random_inputs(1, 2, 3, 4, 2, 2, 2, 1, 3, 5, query_axis_v2023)

    torch.library.opcheck(kernels._attend, (*tensors, *axes))

    inputs = [x.detach() for x in tensors]
    out, sums = kernels._attend(*inputs, *axes)
    torch.library.opcheck(
        kernels._attend_backward,
        (torch.ones_like(out), *inputs, *axes, out, sums),
        test_utils=('test_schema', 'test_faketensor'),
    )


def test_the_compiler_sees_one_node_in_each_direction():
    *tensors, axes = random_inputs(1, 2, 3, 4, 2, 2, 2, 1, 3, 5, query_axis_v2023)
    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    compiled = torch.compile(
        lambda *args: deformable_attention(*args, axes, 'triton'),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=record),
    )
    actual = compiled(*tensors)
    gradients = torch.autograd.grad(actual.sum(), tensors)

    nodes = [
        [node for node in graph.graph.nodes if 'mmsparse' in str(node.target)]
        for graph in graphs
    ]
    assert [len(found) for found in nodes] == [1, 1]
    expected = deformable_attention(*tensors, axes, 'reference')
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sum(), tensors))


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
    shared = [int(line.split()[-1]) for line in done.stdout.splitlines()]
    assert len(shared) == 13
    assert max(shared) < 99 * 1024  # of the smallest recent GPUs


@pytest.mark.parametrize(
    ('measured', 'expected'), [(None, 'triton'), ('sdpa', 'sdpa'), ('tiled', 'tiled')]
)
def test_auto_takes_the_kernels_unless_another_backend_was_faster(
    measured, expected, monkeypatch
):
    q, k, *_ = random_inputs(*CASES['groups'])
    monkeypatch.setattr(deformable, 'is_preferred', lambda x: True)

    def fastest_backend(op, x, known, **sizes):
        assert sizes == dict(queries=12, keys=6, head_dim=3)
        assert 'triton' in known
        return measured

    monkeypatch.setattr(deformable, 'fastest_backend', fastest_backend)

    assert deformable._choose_backend(q, k, num_heads=2) == expected


def test_auto_does_not_take_the_kernels_on_a_cpu():
    q, k, *_ = random_inputs(*CASES['groups'])

    assert deformable._choose_backend(q.cpu(), k.cpu(), num_heads=2) == 'auto'


def test_a_cpu_is_rejected(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    *tensors, axes = random_inputs(*CASES['one-token'])

    with pytest.raises(ValueError, match='needs tensors on a GPU; got one on cpu. Use'):
        deformable_attention(
            *(x.cpu() for x in tensors), [x.cpu() for x in axes], 'triton'
        )


def test_a_triton_without_gather_is_rejected(monkeypatch):
    monkeypatch.delattr(kernels.tl, 'gather')

    with pytest.raises(ValueError, match='of triton with triton.language.gather; got'):
        deformable_attention(*random_inputs(*CASES['one-token']), 'triton')
