"""Run ONNX files in runtimes on the CPU, in float32."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmsparse.errors import UsageError

EXTRA = "pip install 'mmsparse[export]'"
Session = Callable[[np.ndarray], list[np.ndarray]]  # image to outputs


def installed_runtimes() -> tuple[str, ...]:
    """Return the names of the runtimes that are installed."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name))


def load_session(
    source: str | Path | bytes, runtime: str, threads: int | None = None
) -> Session:
    """Load an ONNX file, or its content, in a runtime.

    Args:
        source: The file, or its content.
        runtime: One of ``RUNTIMES``.
        threads: Number of threads; the runtime chooses it if None.

    Returns:
        A function from the array ``image`` to the outputs.

    Raises:
        UsageError: The runtime is unknown or not installed.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f'runtime must be one of {(*RUNTIMES,)}; got {runtime!r}.')
    module = import_or_explain(runtime, 'to run ONNX files in it')
    return RUNTIMES[runtime](module, source, threads)


def import_or_explain(name: str, purpose: str) -> ModuleType:
    """Import a module; raise UsageError with its purpose if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f'{name.partition(".")[0]} is needed {purpose}; install it: {EXTRA}'
        ) from error


def _load_onnxruntime(
    onnxruntime: ModuleType, source: str | Path | bytes, threads: int | None
) -> Session:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        source, options, providers=['CPUExecutionProvider']
    )
    return lambda image: session.run(None, {'image': image})


def _load_openvino(
    openvino: ModuleType, source: str | Path | bytes, threads: int | None
) -> Session:
    # On CPUs with such instructions, OpenVINO would compute in bfloat16.
    options: dict[str, Any] = {'INFERENCE_PRECISION_HINT': 'f32'}
    if threads is not None:
        options['INFERENCE_NUM_THREADS'] = threads
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(source), 'CPU', options)
    return lambda image: list(compiled(image).values())


RUNTIMES = dict(onnxruntime=_load_onnxruntime, openvino=_load_openvino)
