"""What the Triton kernels share: loads, matrix products and the choice of a launch.

A kernel reads a feature map of any strides as a matrix, one token a row
(:func:`token_matrix`). Its launch, block sizes and warps, is the first of a short list
that its module makes from the sizes; on a GPU, the fastest of the list
(:func:`launch_fastest`).
"""
# mypy: disable-error-code="no-untyped-def"

from collections.abc import Callable, Hashable, Sequence
from math import inf
from typing import Any, NamedTuple, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

from mmsparse.ops.triton import is_interpreted

MIN_BLOCK = 16  # rows and columns of the smallest matrix product
INTERPRETED = tl.constexpr(is_interpreted())
LOG2_E = tl.constexpr(1.4426950408889634)  # exp(x) is exp2(LOG2_E * x), as in hardware


class Launch(NamedTuple):
    """Block sizes and launch settings of a kernel.

    Args:
        tile: Tokens that a program computes, a power of 2.
        step: Tokens of a step of its loop, a power of 2.
        num_warps: Warps of a program.
        num_stages: Steps that overlap in the pipeline, loads ahead of products.
    """

    tile: int
    step: int
    num_warps: int
    num_stages: int


def block_size(length: int) -> int:
    """Return the size of a block that holds some rows or columns."""
    return max(triton.next_power_of_2(length), MIN_BLOCK)


def token_matrix(x: Tensor) -> Tensor:
    """View a feature map as a matrix, one token a row, with adjacent channels.

    Queries, keys and values of one projection are such views of it. Other strides are
    copied.

    Args:
        x: (B, H, W, C).

    Returns:
        (B * H * W, C), the last stride 1.
    """
    x = x.flatten(0, 2)
    return x if x.stride(1) == 1 else x.contiguous()


def dot_precision() -> str:
    """Return how matrix products of float32 are computed: ``ieee`` or ``tf32``."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # torch 2.9; raises for the older setting
        return 'tf32' if matmul.fp32_precision == 'tf32' else 'ieee'
    return 'tf32' if matmul.allow_tf32 else 'ieee'


AnyLaunch = TypeVar('AnyLaunch')
_fastest: dict[Hashable, Any] = {}


def launch_fastest(
    run: Callable[[AnyLaunch], object],
    launches: Sequence[AnyLaunch],
    x: Tensor,
    *key: Hashable,
) -> None:
    """Run a kernel with the fastest of some launches.

    They are compiled and measured, which waits for the GPU, in the first call with a
    key; later calls wait for nothing. The first of them is taken without a measurement
    on a CPU (the interpreter), while a CUDA graph is captured, and where torch must be
    deterministic: blocks of other sizes round differently.

    Args:
        run: Runs the kernel with a launch, any number of times.
        launches: Candidates, the best in theory first.
        x: Argument of the kernel, for its device and dtype.
        *key: Name of the kernel and what else the time depends on.
    """
    launch = launches[0]
    if len(launches) > 1 and x.is_cuda and not _must_not_measure():
        full_key = (x.device, x.dtype, dot_precision(), *key)
        if full_key not in _fastest:
            _fastest[full_key] = min(launches, key=lambda x: _milliseconds(run, x))
        launch = _fastest[full_key]
    run(launch)


def _must_not_measure() -> bool:
    return (
        torch.cuda.is_current_stream_capturing()
        or torch.are_deterministic_algorithms_enabled()
    )


def _milliseconds(run: Callable[[AnyLaunch], object], launch: AnyLaunch) -> float:
    try:
        return triton.testing.do_bench(
            lambda: run(launch), warmup=5, rep=20, return_mode='median'
        )
    except OutOfResources:  # of shared memory, on a small GPU
        return inf


@triton.jit
def load_rows(
    pointer, rows, inside, stride, head,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Load a head of some rows of a matrix, (rows, BLOCK); zero outside."""
    channels = tl.arange(0, BLOCK)
    offsets = rows.to(tl.int64)[:, None] * stride + (head * CHANNELS + channels)[None]
    inside = inside[:, None] & (channels < CHANNELS)[None]
    return tl.load(pointer + offsets, mask=inside, other=0.0)


@triton.jit
def store_rows(
    pointer, values, rows, inside, stride, head,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a head of some rows of a matrix."""
    channels = tl.arange(0, BLOCK)
    offsets = rows.to(tl.int64)[:, None] * stride + (head * CHANNELS + channels)[None]
    inside = inside[:, None] & (channels < CHANNELS)[None]
    tl.store(pointer + offsets, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, start=None):
    """Multiply matrices, and accumulate in float32 (float64 of float64).

    The sums begin at `start`, or at zero.
    """
    if (
        INTERPRETED and a.dtype == tl.bfloat16
    ):  # NumPy has none, and would take integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    dtype: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, b, start, input_precision=PRECISION, out_dtype=dtype)
