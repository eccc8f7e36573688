"""Golden cases of BiFormer."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsparse.conversion.biformer import convert_tensor, official_key, rename_key
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import BiLevelRoutingAttention
from parity.biformer_models import build
from parity.cases import Case, Comparison
from parity.generated import generate_state
from parity.models import Call, State, compare_model, in_classifier, summarize

# Names of stored tensors of a layer or block, and the modules that return them.
MODULES = {
    'lepe': 'lepe',
    'norm1': 'norm1',
    'attn_out': 'attn',
    'norm2': 'norm2',
    'mlp_out': 'mlp',
}


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of a case."""
    model = build(case.info['official_class'], case.info['constructor'])
    state = _generated_state(case, model) if 'salt' in case.info else case.state
    last_norm = model.backbone.out_norm if isinstance(model, Classifier) else None
    nhwc = case.info['input_layout'] == 'NHWC'

    def convert(state: State) -> State:
        keys = {key: rename_key(key, last_norm or 'batch') for key in state}
        return {keys[k]: convert_tensor(keys[k], x) for k, x in state.items()}

    def name_outputs(y: Any, calls: dict[str, Call]) -> dict[str, Tensor]:
        if isinstance(y, tuple):
            named = {f'out{i}': x for i, x in enumerate(y)}
            final = torch.cat([x.flatten() for x in y])
        else:
            named = {}
            final = y.permute(0, 2, 3, 1) if nhwc else y
        named |= {'output': final, 'logits': final}
        return (
            named
            | _modules(case, calls)
            | _stages(calls)
            | _routing(case, model, calls)
        )

    return compare_model(
        case,
        model,
        state,
        in_classifier(convert, head='head') if last_norm else convert,
        name_outputs,
        prepare=lambda x: x.permute(0, 3, 1, 2) if nhwc else x,
    )


def official_tensor(key: str, tensor: Tensor, layout: str = 'biformer') -> Tensor:
    """Invert ``convert_tensor``: ``stl-nchw`` has 1x1 convolutions as linear layers."""
    linear = re.search(r'\b(qkv|proj|fc1|fc2)\.weight$', key)
    return tensor[..., None, None] if layout == 'stl-nchw' and linear else tensor


def _is_nchw(case: Case) -> bool:
    """Whether the class is of the refactored code, which works on (B, C, H, W)."""
    return 'nchw' in case.info['official_class']


def _modules(case: Case, calls: dict[str, Call]) -> dict[str, Tensor]:
    """Name the outputs of the modules of a layer or block."""
    named = {name: calls[x].output for name, x in MODULES.items() if x in calls}
    return {
        name: x if name == 'lepe' or _is_nchw(case) else x.permute(0, 2, 3, 1)
        for name, x in named.items()
    }


def _stages(calls: dict[str, Call]) -> dict[str, Tensor]:
    """Name the outputs of the stages of a model, whole and in summary."""
    named = {}
    for name, call in calls.items():
        part, _, rest = name.partition('.')
        if part == 'downsamples' and rest.isdigit():
            named[f'down{int(rest) + 1}'] = call.output
        elif part == 'stages':  # of the last block
            named |= summarize(f'stage{int(rest.partition(".")[0]) + 1}', call.output)
        elif name in ('out_norms.batch3', 'out_norms.layer3'):
            named |= dict(norm=call.output, pooled=call.output.mean((2, 3)))
    return named


@torch.no_grad()
def _routing(case: Case, model: nn.Module, calls: dict[str, Call]) -> dict[str, Tensor]:
    """Name the routes of all layers, and all intermediate results of a single layer."""
    layers = {
        name.removeprefix('backbone.'): layer
        for name, layer in model.named_modules()
        if isinstance(layer, BiLevelRoutingAttention)
    }
    inputs = {name: calls[name].args[0] for name in layers}
    routes = [layers[name].regions(x).routes for name, x in inputs.items()]
    names = sorted(
        (name for name in case.tensors if name.startswith('routing.')),
        key=lambda name: [int(x) for x in name.split('.') if x.isdigit()],
    )
    named = dict(zip(names, routes, strict=False))
    if len(layers) == 1:
        ((name, layer),) = layers.items()
        named |= _intermediates(layer, inputs[name], _is_nchw(case))
    return named


def _intermediates(
    layer: BiLevelRoutingAttention, x: Tensor, nchw: bool
) -> dict[str, Tensor]:
    """Compute region means, affinities and attention of a layer in plain torch."""
    routing = layer.regions(x)
    (rows, columns), (h, w) = routing.grid, routing.region
    batch, _, height, width = x.shape
    padding = (0, columns * w - width, 0, rows * h - height)

    def by_region(x: Tensor) -> Tensor:  # (B, C, H, W) to (B, R, L, C)
        x = x.reshape(batch, -1, rows, h, columns, w)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, h * w, -1)

    # The legacy code pads the input, the refactored code queries, keys and values.
    x = x if nchw else F.pad(x, padding)
    qkv = layer.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    valid = by_region(F.pad(torch.ones_like(qkv[:, :1]), padding if nchw else (0, 0)))
    q, k, _ = by_region(F.pad(qkv, padding if nchw else (0, 0))).split(layer.split, -1)
    q_mean, k_mean = (x.sum(2) / valid.sum(2) for x in (q, k))
    logits = (1 if nchw else layer.scale) * q_mean @ k_mean.transpose(1, 2)

    q, k = (x.unflatten(-1, (layer.num_heads, -1)) for x in (q, k))  # (B, R, L, m, d)
    keys = k[torch.arange(batch)[:, None, None], routing.routes].flatten(2, 3)
    attn = layer.scale * torch.einsum('brlmd,brkmd->brmlk', q, keys)
    attn = attn.softmax(-1)  # (B, R, heads, L, K * L)
    return dict(
        q_region=q_mean,
        k_region=k_mean,
        routing_logits=logits,
        routing_idx=routing.routes,
        routing_weight=routing.scores,
        attn=attn.transpose(1, 2) if nchw else attn.flatten(0, 1),
    )


def _generated_state(case: Case, model: nn.Module) -> State:
    """Draw the official weights from the official names and shapes."""
    backbone = model.backbone if isinstance(model, Classifier) else model
    module = case.info['official_class'].split('.')[-2]
    layout = {'biformer_stl': 'stl', 'biformer_stl_nchw': 'stl-nchw'}.get(
        module, 'biformer'
    )
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
        raise ValueError(f'{len(shapes)} weights in mmsparse, {entries} official ones')
    return generate_state(shapes, case.info['salt'])
