"""Checking one case."""

from dataclasses import dataclass
from importlib import import_module

import torch

from parity import biformer, dat, deformable_detr, shunted
from parity.cases import Case, Comparison, UnsupportedCaseError


def _compare_focus_detr(case: Case) -> list[Comparison]:
    if case.name.startswith('msda_'):  # the operator that both have
        return deformable_detr.compare(case)
    # Here, not above: detectors need mmdet, which need not be installed.
    return import_module('parity.focus_detr').compare(case)


FAMILIES = {
    'biformer': biformer.compare,
    'dat': dat.compare,
    'deformable_detr': deformable_detr.compare,
    'focus_detr': _compare_focus_detr,
    'shunted': shunted.compare,
}


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Args:
        status: ``passed``, ``failed`` or ``unsupported``.
        error: The largest difference over its tolerance, if anything was compared.
        detail: The tensor with that difference, or why nothing was compared.
    """

    status: str
    error: float | None
    detail: str


def check_case(case: Case) -> Verdict:
    """Run our counterpart of a case and compare all that the case stores.

    Args:
        case: The case.

    Returns:
        The verdict; an exception in our own code is a failure.
    """
    if case.family not in FAMILIES:
        return Verdict('unsupported', None, f'no counterpart of family {case.family}')
    try:
        with torch.random.fork_rng():
            comparisons = FAMILIES[case.family](case)
    except UnsupportedCaseError as why:
        return Verdict('unsupported', None, str(why))
    except Exception as error:  # noqa: BLE001 - the report goes on with the next case
        return Verdict('failed', None, f'{type(error).__name__}: {error}')
    error, name = max(
        (comparison.error(), comparison.name) for comparison in comparisons
    )
    return Verdict('passed' if error <= 1 else 'failed', error, name)
