"""Section: does every backend compute what the reference does."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, product

import torch
from torch import Tensor

from benchmark import shapes
from benchmark.events import describe
from benchmark.gpu.job import Job, Step
from benchmark.gpu.results import RIGHT, WRONG, Row
from benchmark.tuning import dtype_name

# Relative errors, ||computed - expected|| / ||expected||.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2}


@dataclass
class Check:
    """A call of an op, and its output and gradients by the reference in float64."""

    case: shapes.Case
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def call(self) -> shapes.Call:
        return self.case.call(self.device, self.dtype)

    @cached_property
    def cotangent(self) -> Tensor:
        return self.call.cotangent()

    @cached_property
    def expected(self) -> tuple[Tensor, ...]:
        return self.call.to_float64().train('reference', self.cotangent.double())


def check_ops(job: Job) -> Iterator[Step]:
    """Compare every backend of every op with the reference in float64.

    Args:
        job: Runs the steps.

    Yields:
        A step for every op, shape, dtype and backend.
    """
    if job.smoke:
        cases = shapes.smallest_cases()
    else:
        cases = chain(shapes.odd_cases(), shapes.model_cases(2, 1))
    cases = [x for x in cases if shapes.reference_fits(x, job.device, itemsize=8)]
    for compiled, case, dtype in product((False, True), cases, TOLERANCES):
        check = Check(case, dtype, job.device)
        for backend in ('auto', *case.backends):
            if (backend in shapes.COMPILED) == compiled:
                name = f'{case.op}, {case.shape}, {dtype_name(dtype)}, {backend}'
                yield Step(
                    name,
                    partial(_compare, check, backend),
                    backend=(case.op, backend),
                )


def _compare(check: Check, backend: str) -> Iterator[Row]:
    row: Row = dict(
        op=check.case.op,
        shape=check.case.shape,
        dtype=dtype_name(check.dtype),
        backend=backend,
    )
    try:
        found = check.call.train(backend, check.cotangent)
    except ValueError as error:  # of a backend that cannot compute this
        yield row | dict(verdict='cannot', why=describe(error))
        return
    value, *gradients = map(_relative_error, found, check.expected)
    # Not-a-numbers are wrong, too.
    right = all(error <= TOLERANCES[check.dtype] for error in (value, *gradients))
    yield row | dict(
        verdict=RIGHT if right else WRONG, values=value, gradients=max(gradients)
    )


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()
