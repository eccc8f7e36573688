"""Measure and compare time and memory of models and ops in one process."""

from benchmark.memory import peak_bytes
from benchmark.timing import (
    Candidate,
    Measurement,
    Stopwatch,
    measure,
)

__all__ = ['Candidate', 'Measurement', 'Stopwatch', 'measure', 'peak_bytes']
