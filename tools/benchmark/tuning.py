"""Measure the backends of ops, and write the file by which ``auto`` chooses."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmark import shapes
from benchmark.events import FORWARD, SECONDS, TRAINING, Passes, time_passes
from benchmark.report import environment, record
from mmsparse.ops._tuning import (
    FOLDER_VARIABLE,
    device_name,
    measurements,
    tuning_file,
    user_folder,
)

CPU_BATCHES = (2, 1)  # of images of 224x224 and 800x1344

Row = dict[str, Any]


def tune(device: torch.device) -> Path:
    """Measure all ops that ``fastest_backend`` knows, at the models' shapes.

    Args:
        device: Device of the runs.

    Returns:
        The user's file for the device; it is written after every measurement.
    """
    path = user_folder() / tuning_file(device_name(device))
    described = describe_device(device)
    rows: list[Row] = []
    on_gpu = device.type == 'cuda'
    batches = () if on_gpu else CPU_BATCHES
    for case in shapes.model_cases(*batches):
        if case.sizes is None:
            continue
        for dtype in (torch.bfloat16, torch.float32) if on_gpu else (torch.float32,):
            print(case.op, case.shape, dtype_name(dtype), file=sys.stderr, flush=True)
            rows += time_backends(case, dtype, device)
            write_tuning(path, described, rows)
    return path


def time_backends(
    case: shapes.Case,
    dtype: torch.dtype,
    device: torch.device,
    seconds: float = SECONDS,
) -> Iterator[Row]:
    """Measure time and memory of all backends of a case.

    Args:
        case: Op and sizes.
        dtype: Dtype of the features.
        device: Device of the runs.
        seconds: See :func:`time_in_turns`.

    Yields:
        A row for each backend; one that fails has its error.
    """
    call = case.call(device, dtype)
    cotangent = call.cotangent()
    candidates = {
        backend: Passes(
            partial(call.run, backend), partial(call.train, backend, cotangent)
        )
        for backend in _backends(case, device)
    }
    for backend, measured in time_passes(candidates, device, seconds).items():
        yield dict(
            op=case.op,
            shape=case.shape,
            dtype=dtype_name(dtype),
            backend=backend,
            **measured,
            sizes=case.sizes,
        )


def timed(backends: Sequence[str], device: torch.device) -> tuple[str, ...]:
    """Return the backends to time: not Triton on a CPU, where it is interpreted."""
    return tuple(x for x in backends if x != 'triton' or device.type == 'cuda')


def _backends(case: shapes.Case, device: torch.device) -> tuple[str, ...]:
    fits = shapes.reference_fits(case, device)
    return tuple(x for x in timed(case.backends, device) if x != 'reference' or fits)


def describe_device(device: torch.device) -> Row:
    """Return what a tuning file has besides the measurements."""
    described = record(device)
    return dict(
        device=device_name(device),
        versions=environment(device)['versions'],
        command=described['command'],
        date=described['date'],
    )


def write_tuning(path: Path, described: Row, rows: Iterable[Row]) -> None:
    """Write the measurements of ops in the format of ``mmsparse.ops._tuning``.

    Args:
        path: File to write.
        described: Result of :func:`describe_device`.
        rows: Rows of :func:`time_backends`; those without times are left out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = described | {'ops': tuned_ops(rows)}
    path.write_text(json.dumps(content, indent=1) + '\n')


@contextmanager
def user_files(folder: Path) -> Iterator[None]:
    """Make ops read their user's files from another folder.

    Args:
        folder: The folder.

    Yields:
        Nothing.
    """
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(folder.resolve())
    measurements.cache_clear()
    try:
        yield
    finally:
        del os.environ[FOLDER_VARIABLE]
        if before is not None:
            os.environ[FOLDER_VARIABLE] = before
        measurements.cache_clear()


def tuned_ops(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Collect the times of the backends by op, sizes, dtype and pass."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row['sizes'] is None or TRAINING not in row:
            continue
        for name in (FORWARD, TRAINING):
            key = json.dumps([row['sizes'], row['dtype'], name])
            entry = dict(
                sizes=row['sizes'],
                dtype=row['dtype'],
                training=name == TRAINING,
                milliseconds={},
            )
            entry = found.setdefault(row['op'], {}).setdefault(key, entry)
            entry['milliseconds'][row['backend']] = row[name]
    return {op: list(entries.values()) for op, entries in found.items()}


def fastest(rows: Iterable[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Return the row with the least time of a pass; None if there is none."""
    timed = [row for row in rows if name in row]
    return min(timed, key=lambda row: row[name], default=None)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without ``torch``."""
    return str(dtype).removeprefix('torch.')
