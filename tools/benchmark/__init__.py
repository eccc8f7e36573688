"""Time and memory of models and operators, compared in one run."""

from benchmark.memory import peak_bytes
from benchmark.timing import (
    Candidate,
    Measurement,
    Stopwatch,
    measure,
)

__all__ = ['Candidate', 'Measurement', 'Stopwatch', 'measure', 'peak_bytes']
