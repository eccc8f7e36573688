"""Time and memory of models and operators, compared in one run."""

from mmsparse.benchmark.memory import peak_bytes
from mmsparse.benchmark.timing import (
    Candidate,
    Measurement,
    Stopwatch,
    measure,
)

__all__ = ['Candidate', 'Measurement', 'Stopwatch', 'measure', 'peak_bytes']
