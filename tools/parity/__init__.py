"""Compare models of mmsparse with stored outputs of the official implementations.

A golden case is a pair NAME.json and NAME.safetensors: an official class with its
arguments, weights, an input, and the outputs of the official code. Each family has a
module here that builds the model of mmsparse and lists the tensors to compare.
"""

from parity.cases import Case, Comparison, UnsupportedCaseError, find_cases
from parity.check import Verdict, check_case

__all__ = [
    'Case',
    'Comparison',
    'UnsupportedCaseError',
    'Verdict',
    'check_case',
    'find_cases',
]
