"""Cases of the BiFormer family."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.conversion.biformer import (
    convert_tensor,
    official_key,
    official_tensor,
    rename_key,
)
from mmsparse.models.layers import BiLevelRoutingAttention
from mmsparse.ops.regions import pad_to_multiple, partition_regions, region_means
from mmsparse.ops.routed import attention_weights
from mmsparse.ops.routing import pool_keys, region_affinity
from parity.biformer_models import build
from parity.cases import Case, Comparison
from parity.generated import generate_state
from parity.models import gradient_comparisons, recorded_outputs

INSIDE_BLOCKS = {  # official name to ours
    'norm1': 'norm1',
    'attn_out': 'attn',
    'norm2': 'norm2',
    'mlp_out': 'mlp',
}


def compare(case: Case) -> list[Comparison]:
    """Run our counterpart of a case and pair every tensor with the official one.

    Args:
        case: The case.

    Returns:
        One comparison for each stored output and gradient.

    Raises:
        UnsupportedCaseError: We have no counterpart for the class or its arguments.
    """
    model = build(case.info['official_class'], case.info['constructor']).eval()
    state = _generated_state(case, model) if 'salt' in case.info else case.state
    model.load_state_dict(_convert(state, model))

    nhwc = case.info['input_layout'] == 'NHWC'
    x = case.tensors['input'].clone().requires_grad_('cotangent' in case.tensors)
    with recorded_outputs(model) as outputs, routed_inputs(model) as inputs:
        out = model(x.permute(0, 3, 1, 2) if nhwc else x)
    seen = _named_outputs(case, out, outputs, inputs, nhwc)
    comparisons = [
        _output_comparison(case, name, seen[name])
        for name in case.tensors
        if not name.startswith(('input', 'state.', 'cotangent', 'grad.'))
    ]
    if 'cotangent' in case.tensors:
        (seen['final'] * case.tensors['cotangent']).sum().backward()
        expected = _convert(case.with_prefix('grad.state.'), model)
        comparisons += gradient_comparisons(case, x, model, expected)
    return comparisons


@contextmanager
def routed_inputs(
    model: nn.Module,
) -> Iterator[list[tuple[BiLevelRoutingAttention, Tensor]]]:
    """Record the inputs of the layers with bi-level routing attention.

    Args:
        model: The model, run inside the context.

    Yields:
        Every layer that ran and its input, in the order of the runs.
    """
    inputs = []
    handles = [
        module.register_forward_pre_hook(
            lambda layer, args: inputs.append((layer, args[0].detach()))
        )
        for module in model.modules()
        if isinstance(module, BiLevelRoutingAttention)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _named_outputs(
    case: Case,
    out: Any,
    outputs: Mapping[str, Tensor],
    inputs: list[tuple[BiLevelRoutingAttention, Tensor]],
    nhwc: bool,
) -> dict[str, Tensor]:
    """Name the outputs as the case does; ``final`` is what gets the cotangent."""
    named = {}
    if isinstance(out, tuple):
        named.update((f'out{i}', level) for i, level in enumerate(out))
        named['final'] = torch.cat([level.flatten() for level in out])
    else:
        named['final'] = out.permute(0, 2, 3, 1) if nhwc else out
    named['output'] = named['logits'] = named['final']
    named.update(_parts(case, outputs))
    named.update(_stages(outputs))
    named.update(_routings(case, inputs))
    return named


def _parts(case: Case, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the outputs of the parts of a layer or a block."""
    named = {}
    if 'lepe' in outputs:
        named['lepe'] = outputs['lepe']
    for official, ours in INSIDE_BLOCKS.items():
        if ours in outputs:
            part = outputs[ours]
            named[official] = part if _is_nchw(case) else part.permute(0, 2, 3, 1)
    return named


def _stages(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name the outputs of the parts of a model, and their summaries."""
    named = {}
    for name, value in outputs.items():
        kind, _, rest = name.partition('.')
        if kind == 'downsamples' and rest.isdigit():
            named[f'down{int(rest) + 1}'] = value
        elif kind == 'stages':  # the last block of a stage remains
            named[f'stage{int(rest.partition(".")[0]) + 1}'] = value
        elif name in ('out_norms.batch3', 'out_norms.layer3'):
            named.update(norm=value, pooled=value.mean((2, 3)))
    for name in [name for name in named if name.startswith('stage')]:
        flat = named[name].flatten(2)
        named[f'{name}_mean'] = flat.mean(-1)
        named[f'{name}_std'] = flat.std(-1, correction=0)
        named[f'{name}_first'] = flat[:, :16, :16]
    return named


@torch.no_grad()
def _routings(
    case: Case, inputs: list[tuple[BiLevelRoutingAttention, Tensor]]
) -> dict[str, Tensor]:
    """Compute the routes of every layer, and all of the routing of a single layer."""
    names = sorted(
        (name for name in case.tensors if name.startswith('routing.')),
        key=lambda name: [int(x) for x in name.split('.') if x.isdigit()],
    )
    routes = [layer.regions(x).routes for layer, x in inputs]
    named = dict(zip(names, routes, strict=False))
    if len(inputs) == 1:
        named.update(_one_routing(*inputs[0], _is_nchw(case)))
    return named


def _one_routing(
    layer: BiLevelRoutingAttention, x: Tensor, nchw: bool
) -> dict[str, Tensor]:
    q, k, _ = layer.project(x)
    routing = layer.regions(x)
    query_mean, key_mean = (region_means(tokens, routing.region) for tokens in (q, k))
    logits = region_affinity(query_mean, key_mean, layer.scale, layer.router)
    q, k = (pad_to_multiple(tokens, routing.region) for tokens in (q, k))
    k = pool_keys(k, routing.grid, layer.kv_pool)
    attn = attention_weights(
        partition_regions(q, routing.grid),
        partition_regions(k, routing.grid),
        routing.routes,
        layer.num_heads,
        layer.scale,
        None if layer.routing == 'hard' else routing.scores,
    )
    return dict(
        q_region=query_mean,
        k_region=key_mean,
        routing_logits=logits / layer.scale if nchw else logits,
        routing_idx=routing.routes,
        routing_weight=routing.scores,
        attn=attn.transpose(1, 2) if nchw else attn.flatten(0, 1),
    )


def _is_nchw(case: Case) -> bool:
    """Whether a class is of the refactored form, with maps and scores in its layout."""
    return 'nchw' in case.info['official_class']


def _output_comparison(case: Case, name: str, actual: Tensor) -> Comparison:
    expected = case.tensors[name]
    if name.startswith('routing.') or name == 'routing_idx':
        return Comparison(name, actual, expected.long(), as_sets=True)
    atol = case.info['outputs'][name]['atol']
    return Comparison(name, actual, expected, atol, case.info['tolerance']['rtol'])


def _convert(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Official weights, or gradients of them, by our keys and in our shapes."""
    classifier = hasattr(model, 'head')
    last_norm = model.backbone.out_norm if classifier else 'batch'
    converted = {}
    for official, tensor in state.items():
        if classifier and official.startswith('head.'):
            converted[official.replace('head.', 'head.fc.')] = tensor
            continue
        key = rename_key(official, last_norm)
        prefix = 'backbone.' if classifier else ''
        converted[prefix + key] = convert_tensor(key, tensor)
    return converted


def _generated_state(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Make the official weights from the official names and shapes."""
    backbone = getattr(model, 'backbone', model)
    layout = _layout(case.info['official_class'])
    routed = [
        i
        for i, stage in enumerate(backbone.stages)
        if isinstance(stage[0].attn, BiLevelRoutingAttention)
    ]
    shapes = {}
    for name, tensor in model.state_dict().items():
        key = name.removeprefix('backbone.')
        official = official_key(key, layout, routed).replace('head.fc.', 'head.')
        shapes[official] = official_tensor(key, tensor, layout).shape
    entries = case.info.get('state_entries_official', len(shapes))
    if entries != len(shapes):
        raise ValueError(f'{len(shapes)} weights of ours, {entries} official ones')
    return generate_state(shapes, case.info['salt'])


def _layout(official_class: str) -> str:
    module = official_class.split('.')[-2]
    return {'biformer_stl': 'stl', 'biformer_stl_nchw': 'stl-nchw'}.get(
        module, 'biformer'
    )
