"""Check one golden case."""

from dataclasses import dataclass
from importlib import import_module

import torch

from parity.cases import Case, Comparison, UnsupportedCaseError

FAMILIES = (
    'biformer',
    'dat',
    'deformable_detr',
    'detr',
    'focus_detr',
    'shunted',
    'sparse_detr',
)


@dataclass(frozen=True)
class Verdict:
    """The result of a case.

    Args:
        status: ``passed``, ``failed`` or ``unsupported``.
        error: The largest difference over its tolerance, if anything was compared.
        detail: Name of the tensor with that difference, or why nothing was compared.
    """

    status: str
    error: float | None
    detail: str


def check_case(case: Case) -> Verdict:
    """Compare everything that a case stores; an exception in mmsparse is a failure."""
    if case.family not in FAMILIES:
        return Verdict('unsupported', None, f'no counterpart of family {case.family}')
    try:
        with torch.random.fork_rng():
            comparisons = _compare(case)
    except UnsupportedCaseError as why:
        return Verdict('unsupported', None, str(why))
    except Exception as error:  # noqa: BLE001 - the other cases are still checked
        return Verdict('failed', None, f'{type(error).__name__}: {error}')
    error, name = max(
        (comparison.error(), comparison.name) for comparison in comparisons
    )
    return Verdict('passed' if error <= 1 else 'failed', error, name)


def _compare(case: Case) -> list[Comparison]:
    # Cases of the operator are stored with both detectors. Focus-DETR needs mmdet,
    # which need not be installed, so modules are imported when they are needed.
    family = 'deformable_detr' if case.name.startswith('msda_') else case.family
    return import_module(f'parity.{family}').compare(case)
