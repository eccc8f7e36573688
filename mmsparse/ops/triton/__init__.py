"""Triton kernels for GPUs, one module an op.

Every module defines a custom operator of torch, so that ``torch.compile``,
``torch.export`` and CUDA graphs see one node. They are imported where they are called,
after :func:`require_triton`. Triton's interpreter runs the kernels on a CPU if
TRITON_INTERPRET=1 is set before.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from mmsparse.ops._backend import is_transforming


def runs_on(x: Tensor) -> bool:
    """Return whether the kernels can run on a tensor: on a GPU, or interpreted."""
    return _has_custom_op() and _has_triton() and (x.is_cuda or is_interpreted())


def is_preferred(x: Tensor) -> bool:
    """Return whether ``auto`` takes a kernel that was not measured on the GPU at hand.

    In theory it is the fastest where tensor cores compute in bfloat16 and TF32, from
    Ampere (compute capability 8.0) on. Not for ``torch.jit``, ONNX and ``torch.func``,
    which know no custom operators.
    """
    if not (x.is_cuda and runs_on(x)):
        return False
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or is_transforming():
        return False
    # Tensors of FakeTensorMode need no GPU.
    is_real = torch.cuda.is_initialized()
    return not is_real or torch.cuda.get_device_capability(x.device) >= (8, 0)


def require_triton(x: Tensor) -> None:
    """Raise ValueError unless the kernels can run on a tensor.

    Args:
        x: Argument of the op.

    Raises:
        ValueError: The tensor is on a CPU and no interpreter is set, or Triton
            is missing, or torch is too old for custom operators.
    """
    if not x.is_cuda and not is_interpreted():
        raise ValueError(
            f"backend='triton' needs tensors on a GPU; got one on {x.device}. Use "
            "'auto', or start with TRITON_INTERPRET=1 to try it on a CPU, slowly."
        )
    if not _has_custom_op():
        raise ValueError(
            f"backend='triton' needs torch 2.4 or later; got {torch.__version__}. Use "
            "'auto'."
        )
    if not _has_triton():
        raise ValueError(
            "backend='triton' needs triton, which comes with torch for CUDA; use "
            "'auto' without it."
        )


def _has_custom_op() -> bool:
    return hasattr(torch.library, 'custom_op')


@torch.compiler.assume_constant_result  # the compiler cannot trace the search
def _has_triton() -> bool:
    return find_spec('triton') is not None


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels."""
    return os.environ.get('TRITON_INTERPRET') == '1'
