"""Kernels of multi-scale deformable attention, interpreted, and compiled for GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from mmsparse.ops import multi_scale, multi_scale_deformable_attention

pytest.importorskip('triton', minversion='3')  # has the interpreter

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
CASES = {  # B, queries, heads, D, points, sizes
    'one-cell': (1, 1, 1, 1, 1, ((1, 1),)),
    'odd-channels': (2, 5, 2, 6, 2, ((5, 7), (3, 1))),
    'several-blocks': (1, 40, 1, 16, 1, ((4, 3), (1, 5))),
}
# Compiles the kernels for GPUs without having one: prints registers, bytes of shared
# memory and spilled registers of each.
COMPILE = """
import json, sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from mmsparse.ops.triton import multi_scale as kernels

for capability, dtype, width, (queries, warps) in json.loads(sys.argv[1]):
    constants = dict(HEADS=8, LEVELS=4, POINTS=4, WIDTH=width, BLOCK_Q=queries)
    constants['BLOCK_D'] = triton.next_power_of_2(width)
    types = dict(shapes_ptr='*i32', starts_ptr='*i32', cells='i32', queries='i32')
    types |= dict(value_ptr=f'*{dtype}', out_ptr=f'*{dtype}', grad_ptr=f'*{dtype}')
    for name in ('_forward', '_backward'):
        kernel = getattr(kernels, name)
        known = constants | (dict(SCATTER=True) if name == '_backward' else {})
        signature = {
            x: 'constexpr' if x in known else types.get(x, '*fp32')
            for x in kernel.arg_names
        }
        aligned = {  # as pointers of torch's allocator are
            (i,): [['tt.divisibility', 16]]
            for i, kind in enumerate(signature.values()) if kind.startswith('*')
        }
        source = ASTSource(kernel, signature, known, aligned)
        target = GPUTarget('cuda', capability, 32)
        compiled = triton.compile(source, target=target, options=dict(num_warps=warps))
        assert compiled.asm['cubin']
        loads = compiled.asm['ptx'].count('ld.global.v4')
        print(json.dumps([name, compiled.metadata.shared, loads]))
"""


def random_inputs(B, Q, heads, D, points, sizes, dtype=torch.float64):
    """Return values, locations of which some are far beyond the levels, and weights."""
    precise = dict(dtype=torch.promote_types(dtype, torch.float32), device=DEVICE)
    cells = sum(height * width for height, width in sizes)
    grid = (B, Q, heads, len(sizes), points)
    value = torch.randn(B, cells, heads, D, dtype=dtype, device=DEVICE)
    locations = 0.5 + 0.6 * torch.randn(*grid, 2, **precise)
    if Q > 1:
        locations[:, 0] *= 1e12
    weights = torch.rand(*grid, **precise)
    return tuple(x.requires_grad_() for x in (value, locations, weights))


def gradients(out, inputs):
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device)
    return torch.autograd.grad(out, inputs, cotangent.view(out.shape))


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_equals_the_reference_in_value_and_gradient(case):
    inputs, sizes = random_inputs(*case), case[-1]
    expected = multi_scale_deformable_attention(*inputs, sizes, 'reference')

    actual = multi_scale_deformable_attention(*inputs, sizes, 'triton')

    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_deterministic_algorithms_give_the_same_gradients():
    inputs, sizes = random_inputs(*CASES['odd-channels']), CASES['odd-channels'][-1]
    out = multi_scale_deformable_attention(*inputs, sizes, 'triton')
    expected = gradients(out, inputs)

    out = multi_scale_deformable_attention(*inputs, sizes, 'triton')
    torch.use_deterministic_algorithms(True)
    try:
        actual = gradients(out, inputs)
    finally:
        torch.use_deterministic_algorithms(False)

    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_sums_in_float32(dtype):
    sizes = CASES['odd-channels'][-1]
    inputs = random_inputs(*CASES['odd-channels'], dtype)
    expected = multi_scale_deformable_attention(*inputs, sizes, 'reference')

    actual = multi_scale_deformable_attention(*inputs, sizes, 'triton')

    assert actual.dtype == dtype
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_strides_do_not_matter():
    inputs, sizes = random_inputs(*CASES['odd-channels']), CASES['odd-channels'][-1]
    expected = multi_scale_deformable_attention(*inputs, sizes, 'triton')

    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    actual = multi_scale_deformable_attention(*strided, sizes, 'triton')

    assert actual.equal(expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_is_one_operator_of_torch():
    from mmsparse.ops.triton import multi_scale as kernels

    value, points, weights = random_inputs(1, 2, 1, 2, 1, ((2, 3), (1, 1)))
    layout = multi_scale.level_layout(((2, 3), (1, 1)), value.device)
    inputs = (value, *layout, points, weights)

    torch.library.opcheck(kernels.attend, inputs)
    grad = torch.randn_like(value[:, :2])
    detached = [x.detach() for x in inputs]
    torch.library.opcheck(kernels.attend_backward, (grad, *detached))


def test_the_compiler_records_one_node():
    torch.compiler.reset()
    inputs, sizes = random_inputs(1, 3, 1, 2, 1, ((2, 3),)), ((2, 3),)
    counter = CompileCounterWithBackend('aot_eager')
    compiled = torch.compile(
        multi_scale_deformable_attention, fullgraph=True, backend=counter
    )

    actual = compiled(*inputs, sizes, 'triton')

    called = [str(x.target) for x in counter.graphs[0].graph.nodes]
    assert sum('mmsparse.multi_scale' in name for name in called) == 1
    expected = multi_scale_deformable_attention(*inputs, sizes, 'reference')
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradients(actual, inputs), gradients(expected, inputs))


def test_the_kernels_compile_for_gpus():
    pytest.importorskip('triton.backends.nvidia')
    environment = {k: v for k, v in os.environ.items() if k != 'TRITON_INTERPRET'}
    cases = [
        (80, 'bf16', 32, (32, 4)),
        (90, 'fp32', 24, (64, 8)),
    ]

    done = subprocess.run(
        [sys.executable, '-c', COMPILE, json.dumps(cases)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 * len(cases)
    for name, shared, vector_loads in rows:
        assert shared <= 48 * 2**10, name  # bytes, several blocks fit into an SM
        assert vector_loads, name  # of 16 bytes


def test_a_cpu_is_rejected(monkeypatch):
    monkeypatch.delenv('TRITON_INTERPRET', raising=False)
    inputs = [x.cpu() for x in random_inputs(*CASES['one-cell'])]

    with pytest.raises(ValueError, match='needs tensors on a GPU; got one on cpu'):
        multi_scale_deformable_attention(*inputs, ((1, 1),), 'triton')
