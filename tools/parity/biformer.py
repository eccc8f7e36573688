"""Cases of the BiFormer family."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from mmsparse.conversion.biformer import (
    convert_tensor,
    official_key,
    official_tensor,
    rename_key,
)
from mmsparse.models.layers import BiLevelRoutingAttention
from mmsparse.models.layers import bilevel_routing_attention as biformer_attention
from mmsparse.ops.routing import attention_weights
from parity.biformer_models import build
from parity.cases import Case, Comparison
from parity.generated import generate_state
from parity.models import gradient_comparisons, recorded_outputs

SPIED = ('region_means', 'route_regions', 'routed_attention')
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
    with Recorder(model) as recorder:
        out = model(x.permute(0, 3, 1, 2) if nhwc else x)
    seen = recorder.outputs(case, out, nhwc)
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


class Recorder(ExitStack):
    """Notes what passes through a model's parts and through the routing ops."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[str, list[tuple]] = {name: [] for name in SPIED}
        self.seen = self.enter_context(recorded_outputs(model))

    def __enter__(self) -> 'Recorder':
        super().__enter__()
        for name, calls in self.calls.items():
            spy = _spy(getattr(biformer_attention, name), calls)
            self.enter_context(mock.patch.object(biformer_attention, name, spy))
        return self

    def outputs(self, case: Case, out: Any, nhwc: bool) -> dict[str, Tensor]:
        """Name what was seen as the case does; ``final`` is what gets the cotangent."""
        named = {}
        if isinstance(out, tuple):
            named.update((f'out{i}', level) for i, level in enumerate(out))
            named['final'] = torch.cat([level.flatten() for level in out])
        else:
            named['final'] = out.permute(0, 2, 3, 1) if nhwc else out
        named['output'] = named['logits'] = named['final']
        named.update(self._parts(case))
        named.update(self._stages())
        named.update(self._routing(case))
        return named

    def _parts(self, case: Case) -> dict[str, Tensor]:
        """Parts of a layer or a block."""
        named = {}
        if 'lepe' in self.seen:
            named['lepe'] = self.seen['lepe']
        for official, ours in INSIDE_BLOCKS.items():
            if ours in self.seen:
                part = self.seen[ours]
                named[official] = part if _is_nchw(case) else part.permute(0, 2, 3, 1)
        return named

    def _stages(self) -> dict[str, Tensor]:
        """Parts of a model, whole and in summary."""
        named = {}
        for name, value in self.seen.items():
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

    def _routing(self, case: Case) -> dict[str, Tensor]:
        names = sorted(
            (name for name in case.tensors if name.startswith('routing.')),
            key=lambda name: [int(x) for x in name.split('.') if x.isdigit()],
        )
        routes = [result for *_, result in self.calls['route_regions']]
        named = dict(zip(names, routes, strict=False))
        if len(routes) == 1:
            named.update(self._one_routing(_is_nchw(case)))
        return named

    def _one_routing(self, nchw: bool) -> dict[str, Tensor]:
        """All that a single routed attention had in it."""
        ((*_, means),) = self.calls['region_means']
        query_mean, key_mean = means.chunk(2, dim=-1)
        (((query, key, _), _, routes),) = self.calls['route_regions']
        ((arguments, options, _),) = self.calls['routed_attention']
        q, k, _, _, num_heads, scale = arguments
        attn = attention_weights(q, k, routes, num_heads, scale, **options)
        logits = query @ key.transpose(-2, -1)
        return dict(
            q_region=query_mean,
            k_region=key_mean,
            routing_logits=logits / scale if nchw else logits,
            routing_idx=routes,
            routing_weight=logits.gather(-1, routes).softmax(-1),
            attn=attn.transpose(1, 2) if nchw else attn.flatten(0, 1),
        )


def _spy(function: Callable, calls: list[tuple]) -> Callable:
    def call(*arguments: Any, **options: Any) -> Tensor:
        result = function(*arguments, **options)
        calls.append((arguments, options, result))
        return result

    return call


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
