"""Cases of multi-scale deformable attention, which is mmcv's (Deformable DETR)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from parity.cases import Case, Comparison, UnsupportedCaseError

Arguments = Mapping[str, Any]

PRECISIONS = {'fp32': torch.float32, 'fp64': torch.float64}
DOUBLE_LIMITS = (1e-9, 1e-9)  # absolute and relative: sums may run in another order
# These queries sit on borders of cells on purpose; there locations have no gradient.
BORDER_QUERIES = 2
MODULE = ('embed_dim', 'num_heads', 'num_levels', 'num_points', 'batch_first')
# What the files say of the inputs, and what does nothing in evaluation.
DESCRIPTION = ('batch', 'queries', 'shapes', 'reference_dim', 'padding_mask')
NO_EFFECT = (*DESCRIPTION, 'query_pos', 'dropout', 'img2col_step')


@dataclass(frozen=True)
class Run:
    """One run of the operator or the module.

    Args:
        output: What it returned.
        leaves: Inputs and weights that a file may store gradients for, by its names.
    """

    output: Tensor
    leaves: Mapping[str, Tensor]


def compare(case: Case) -> list[Comparison]:
    """Run mmcv's counterpart of a case and pair every tensor with the official one.

    Args:
        case: The case, several runs of the operator (``msda_core_...``) or of the
            module (``msda_module_...``).

    Returns:
        One comparison for each stored output and gradient, in the precision of each.

    Raises:
        UnsupportedCaseError: We have no counterpart for the kind or its arguments.
    """
    kind = next((kind for kind in RUNNERS if case.name.startswith(kind)), None)
    if kind is None:
        raise UnsupportedCaseError(f'no counterpart; there are those of {[*RUNNERS]}')
    comparisons: list[Comparison] = []
    for i, arguments in enumerate(case.info['args']['cases']):
        tensors = case.with_prefix(f'case{i}.')
        for precision, dtype in PRECISIONS.items():
            inputs = _leaves(tensors, 'in.', dtype)
            cotangent = inputs.pop('cotangent', None)
            run = RUNNERS[kind](arguments, inputs, _leaves(tensors, 'state.', dtype))
            if cotangent is not None:
                (run.output * cotangent).sum().backward()
            limits = _limits(case, precision)
            comparisons += [
                Comparison(f'case{i}.{name}', actual, expected, *limits)
                for name, actual, expected in _pairs(run, tensors, precision)
            ]
    return comparisons


def _leaves(
    tensors: Mapping[str, Tensor], prefix: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Copies of stored tensors, in a precision and with gradients if they may have."""
    return {
        name.removeprefix(prefix): x.to(dtype, copy=True).requires_grad_()
        if x.is_floating_point()
        else x
        for name, x in tensors.items()
        if name.startswith(prefix)
    }


def _run_core(
    arguments: Arguments, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Run:
    # Here, not above: mmcv may come without compiled operators.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    leaves = dict(
        value=inputs['value'],
        locations=inputs['sampling_locations'],
        weights=inputs['attention_weights'],
    )
    sizes = [(int(h), int(w)) for h, w in inputs['spatial_shapes']]
    value, locations, weights = leaves.values()
    output = multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)
    return Run(output, leaves)


def _run_module(
    arguments: Arguments, inputs: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Run:
    from mmcv.ops import MultiScaleDeformableAttention

    if unknown := set(arguments) - set(MODULE) - set(NO_EFFECT):
        raise UnsupportedCaseError(f'unknown arguments {sorted(unknown)}')
    settings = {name: arguments[name] for name in MODULE if name in arguments}
    settings['embed_dims'] = settings.pop('embed_dim')
    module = MultiScaleDeformableAttention(**settings).eval()
    module.to(inputs['query'].dtype).load_state_dict(state)
    weights = {f'state.{name}': x for name, x in module.named_parameters()}
    return Run(module(**inputs), {**inputs, **weights})


def _pairs(
    run: Run, tensors: Mapping[str, Tensor], precision: str
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, ours and the official one of all that is stored in a precision."""
    for name, expected in tensors.items():
        if not name.startswith(('out.', 'grad.')) or not name.endswith(precision):
            continue
        if name.startswith('out.'):
            yield name, run.output, expected
            continue
        leaf = name.removeprefix('grad.').removesuffix(f'_{precision}')
        actual = run.leaves[leaf].grad
        if leaf == 'locations':
            actual, expected = (x[:, BORDER_QUERIES:] for x in (actual, expected))
        yield name, actual, expected


def _limits(case: Case, precision: str) -> tuple[float, float]:
    if precision == 'fp64':
        return DOUBLE_LIMITS
    tolerance = case.info['tolerance']
    return tolerance['fp32_atol'], tolerance['fp32_rtol']


RUNNERS = {'msda_core_': _run_core, 'msda_module_': _run_module}
