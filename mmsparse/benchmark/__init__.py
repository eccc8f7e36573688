"""Time and memory of models and operators, compared in one run."""

from mmsparse.benchmark.measure import (
    Candidate,
    Measurement,
    Stopwatch,
    measure,
)
from mmsparse.benchmark.memory import peak_bytes

__all__ = ['Candidate', 'Measurement', 'Stopwatch', 'measure', 'peak_bytes']
