"""Golden cases of multi-scale deformable attention: the op, and mmcv's module on it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmsparse.ops import multi_scale_deformable_attention
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.models import Arguments, State

PRECISIONS = {'fp32': torch.float32, 'fp64': torch.float64}
# The first queries are on cell borders, where locations have no gradient.
BORDER_QUERIES = 2
MODULE = ('embed_dim', 'num_heads', 'num_levels', 'num_points', 'batch_first')
NO_EFFECT = (  # descriptions of the inputs, and arguments without effect in evaluation
    *('batch', 'queries', 'shapes', 'reference_dim', 'padding_mask', 'query_pos'),
    *('dropout', 'img2col_step'),
)


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of several runs, in the precision of each."""
    run = next(
        (run for prefix, run in CASE_TYPES.items() if case.name.startswith(prefix)),
        None,
    )
    if run is None:
        raise UnsupportedCaseError(
            f'no counterpart; the case types are {[*CASE_TYPES]}'
        )
    comparisons: list[Comparison] = []
    for i, arguments in enumerate(case.info['args']['cases']):
        for precision, dtype in PRECISIONS.items():
            inputs = _leaves(case.with_prefix(f'case{i}.in.'), dtype)
            state = _leaves(case.with_prefix(f'case{i}.state.'), dtype)
            cotangent = inputs.pop('cotangent', None)
            output, leaves = run(arguments, inputs, state)
            if cotangent is not None:
                (output * cotangent).sum().backward()
            comparisons += _compare(case, f'case{i}.', precision, output, leaves)
    return comparisons


def _compare(
    case: Case,
    prefix: str,
    precision: str,
    output: Tensor,
    leaves: Mapping[str, Tensor],
) -> list[Comparison]:
    """Compare everything that is stored of a run in a precision."""
    comparisons = []
    for name, expected in case.with_prefix(prefix).items():
        if not name.endswith(precision):
            continue
        actual = output
        if name.startswith('grad.'):
            leaf = name.removeprefix('grad.').removesuffix(f'_{precision}')
            actual = leaves[leaf].grad
            if leaf == 'locations':
                actual, expected = (x[:, BORDER_QUERIES:] for x in (actual, expected))
        comparisons.append(case.compare(prefix + name, actual, expected))
    return comparisons


def _leaves(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Copy tensors in a precision; those of floating point require a gradient."""
    return {
        name: x.to(dtype, copy=True).requires_grad_() if x.is_floating_point() else x
        for name, x in tensors.items()
    }


def _run_core(
    arguments: Arguments, inputs: State, state: State
) -> tuple[Tensor, dict[str, Any]]:
    leaves = dict(
        value=inputs['value'],
        locations=inputs['sampling_locations'],
        weights=inputs['attention_weights'],
    )
    sizes = [(int(h), int(w)) for h, w in inputs['spatial_shapes']]
    value, locations, weights = leaves.values()
    output = multi_scale_deformable_attention(value, locations, weights, sizes)
    return output.flatten(2), leaves


def _run_module(
    arguments: Arguments, inputs: State, state: State
) -> tuple[Tensor, dict[str, Any]]:
    # Imported late: mmcv may be installed without compiled operators.
    from mmcv.ops import MultiScaleDeformableAttention

    from mmsparse.models.detectors import replace_operators

    if unknown := set(arguments) - set(MODULE) - set(NO_EFFECT):
        raise UnsupportedCaseError(f'unknown arguments {sorted(unknown)}')
    settings = {name: arguments[name] for name in MODULE if name in arguments}
    settings['embed_dims'] = settings.pop('embed_dim')
    module = replace_operators(MultiScaleDeformableAttention(**settings)).eval()
    module.to(inputs['query'].dtype).load_state_dict(state)
    weights = {f'state.{name}': x for name, x in module.named_parameters()}
    return module(**inputs), {**inputs, **weights}


CASE_TYPES = {'msda_core_': _run_core, 'msda_module_': _run_module}
