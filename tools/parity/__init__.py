"""Comparison of our models with stored outputs of the official ones.

A case is a pair NAME.json and NAME.safetensors: an official class, its arguments,
weights, an input, and what the official code made of it. Each family has a module here
that builds our counterpart and lists what to compare.
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
