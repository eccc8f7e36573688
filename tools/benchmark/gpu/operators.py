"""Section: time and memory of the ops at the shapes of the models."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch

from benchmark import shapes
from benchmark.gpu.job import Job, Step
from benchmark.tuning import dtype_name, time_backends


def time_ops(job: Job) -> Iterator[Step]:
    """Time all backends of every op, in bfloat16 first, compiled backends last.

    Args:
        job: Runs the steps.

    Yields:
        A step for every op, shape and dtype.
    """
    cases = shapes.smallest_cases() if job.smoke else shapes.model_cases()
    dtypes = (torch.float32,) if job.smoke else (torch.bfloat16, torch.float32)
    for compiled, dtype, case in product((False, True), dtypes, list(cases)):
        backends = [
            x
            for x in case.backends
            if (x in shapes.COMPILED) == compiled and not job.is_broken((case.op, x))
        ]
        if backends:
            yield Step(
                f'{case.op}, {case.shape}, {dtype_name(dtype)}, {", ".join(backends)}',
                partial(
                    time_backends,
                    replace(case, backends=tuple(backends)),
                    dtype,
                    job.device,
                    job.seconds,
                ),
            )
