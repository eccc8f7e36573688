"""Sections: what the device reaches, and its depthwise convolutions."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.events import Passes, time_in_turns, time_passes
from benchmark.gpu.job import Job, Step
from benchmark.gpu.results import Row
from benchmark.tuning import dtype_name

FORMATS = {'NHWC': torch.channels_last, 'NCHW': torch.contiguous_format}
# Channels, side and kernel of convolutions of the models.
CONVOLUTIONS = ((64, 56, 3), (64, 56, 5), (256, 14, 5), (512, 56, 3), (1024, 28, 3))


def measure_ceilings(job: Job) -> Iterator[Step]:
    """Measure matrix products and a copy.

    Args:
        job: Runs the steps.

    Yields:
        A step for each.
    """
    side = 64 if job.smoke else 8192
    numel = 2**10 if job.smoke else 2**28
    for dtype, tf32 in (
        (torch.bfloat16, False),
        (torch.float32, True),
        (torch.float32, False),
    ):
        name = 'tf32' if tf32 else dtype_name(dtype)
        yield Step(name, partial(_time_product, job, side, dtype, tf32))
    yield Step('copy', partial(_time_copy, job, numel))


def _time_product(job: Job, side: int, dtype: torch.dtype, tf32: bool) -> Iterator[Row]:
    a, b = torch.randn(2, side, side, device=job.device).to(dtype)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        milliseconds = _time(lambda: a @ b, job)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    name = 'tf32' if tf32 else dtype_name(dtype)
    rate = 2 * side**3 / milliseconds / 1e9
    yield {'what': f'matrix product, {name}', 'TFLOP/s': rate}


def _time_copy(job: Job, numel: int) -> Iterator[Row]:
    x = torch.randn(numel, device=job.device)
    y = torch.empty_like(x)
    rate = 2 * x.nbytes / _time(lambda: y.copy_(x), job) / 1e6
    yield {'what': 'copy', 'GB/s': rate}


def _time(run: Callable[[], Tensor], job: Job) -> float:
    result = time_in_turns({'run': run}, job.device, job.seconds)['run']
    if isinstance(result, Exception):
        raise result
    return result


def time_depthwise(job: Job) -> Iterator[Step]:
    """Time depthwise convolutions in both memory formats.

    Args:
        job: Runs the steps.

    Yields:
        A step for every shape and dtype.
    """
    convolutions = ((8, 4, 3),) if job.smoke else CONVOLUTIONS
    for channels, side, kernel in convolutions:
        for dtype in (torch.bfloat16, torch.float32):
            shape = f'{channels}x{side}x{side}, kernel {kernel}'
            batch = 1 if job.smoke else 128
            size = (batch, channels, side, kernel)
            yield Step(
                f'{shape}, {dtype_name(dtype)}',
                partial(_time_formats, job, shape, size, dtype),
            )


def _time_formats(
    job: Job, shape: str, size: tuple[int, int, int, int], dtype: torch.dtype
) -> Iterator[Row]:
    batch, channels, side, kernel = size
    options = dict(device=job.device, dtype=dtype)
    x, cotangent = torch.randn(2, batch, channels, side, side, **options)
    weight = torch.randn(channels, 1, kernel, kernel, **options).requires_grad_()

    def convolve(x: Tensor) -> Tensor:
        return F.conv2d(x, weight, padding=kernel // 2, groups=channels)

    def train(x: Tensor, cotangent: Tensor) -> None:
        torch.autograd.grad(convolve(x), (x, weight), cotangent)

    candidates = {}
    for name, memory_format in FORMATS.items():
        own, grad = (y.contiguous(memory_format=memory_format) for y in (x, cotangent))
        own = own.detach().requires_grad_()
        candidates[name] = Passes(partial(convolve, own), partial(train, own, grad))
    for name, measured in time_passes(candidates, job.device, job.seconds).items():
        yield dict(shape=shape, dtype=dtype_name(dtype), format=name, **measured)
