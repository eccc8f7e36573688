"""Golden cases of Shunted Transformer."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.conversion.shunted import official_key, rename_key
from mmsparse.models.backbones.shunted_transformer import (
    ShuntedTransformer,
    patch_embedding,
    stem,
)
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import ShuntedSelfAttention
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.mlp import Mlp2d
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.generated import generate_state
from parity.models import (
    Arguments,
    Call,
    State,
    compare_model,
    in_classifier,
    summarize,
)

# Names of stored tensors, and the modules that return them.
TOKENS = {'q_out': 'q', 'kv_out': 'kv', 'kv1_out': 'coarse.kv', 'kv2_out': 'fine.kv'}
FEATURE_MAPS = {
    'sr_norm1': 'coarse.norm',
    'sr_norm2': 'fine.norm',
    'local': 'lepe',
    'local1': 'coarse.lepe',
    'local2': 'fine.lepe',
    'dwconv_out': 'dwconv',
    'norm1': 'norm1',
    'attn_out': 'attn',
    'norm2': 'norm2',
    'mlp_out': 'mlp',
}
PER_STAGE = ('embed_dims', 'depths', 'num_heads', 'mlp_ratios', 'sr_ratios')
OFFICIAL_DEFAULTS = dict(
    embed_dims=(64, 128, 256, 512),
    depths=(3, 4, 6, 3),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=(4, 4, 4, 4),
    sr_ratios=(8, 4, 2, 1),
    num_conv=0,
    qkv_bias=False,
)
NO_EFFECT = {  # dropout in evaluation mode, and what the official code ignores
    *('drop', 'drop_rate', 'drop_path', 'drop_path_rate', 'attn_drop', 'proj_drop'),
    *('attn_drop_rate', 'img_size', 'pretrained'),
}


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs and gradients of a case."""
    official_class = case.info['official_class'].rpartition('.')[2]
    if official_class not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of {official_class}')
    build, place = BUILDERS[official_class]
    model = build(case.info['constructor'])
    convert = partial(_convert, place=place) if place else WHOLE
    state = case.state or _generated_state(model, place, case.info['salt'])

    def prepare(x: Tensor) -> Tensor:
        if not case.info['input_layout'].startswith('NLC'):
            return x
        size = (case.info['forward_args']['H'], case.info['forward_args']['W'])
        return x.transpose(1, 2).unflatten(2, size)

    def name_outputs(y: Tensor, calls: dict[str, Call]) -> dict[str, Tensor]:
        named = _name_outputs(model, y, calls)
        return {
            # The official code stores some feature maps as row-major tokens.
            name: x.flatten(2).transpose(1, 2)
            if x.ndim == 4 and name in case.tensors and case.tensors[name].ndim == 3
            else x
            for name, x in named.items()
        }

    return compare_model(case, model, state, convert, name_outputs, prepare)


def _name_outputs(
    model: nn.Module, y: Tensor, calls: dict[str, Call]
) -> dict[str, Tensor]:
    named = {'output': y, 'logits': y, 'grid': torch.tensor(y.shape[2:])}
    named |= {k: calls[x].output for k, x in FEATURE_MAPS.items() if x in calls}
    named |= {k: calls[x].output.flatten(1, 2) for k, x in TOKENS.items() if x in calls}
    if isinstance(model, ShuntedSelfAttention):
        named['before_proj'] = calls['proj'].args[0].flatten(1, 2)
    if isinstance(model, Classifier):
        for i, stage in enumerate(model.backbone.stages):
            named[f'embed{i + 1}'] = calls[f'downsamples.{i}'].output
            last_block = calls[f'stages.{i}.{len(stage) - 2}']
            named[f'stage{i + 1}_prenorm'] = last_block.output
            named |= summarize(f'stage{i + 1}', calls[f'stages.{i}.norm'].output)
        named['pooled'] = named[f'stage{i + 1}_mean']
    return named


def _convert(state: State, place: str = '') -> State:
    """Rename the official state dict of a module at a place of the whole model."""
    return {
        rename_key(place + key).removeprefix(rename_key(place)): tensor
        for key, tensor in state.items()
    }


def _generated_state(model: nn.Module, place: str, salt: str) -> State:
    shapes = {}
    for key, tensor in model.state_dict().items():
        if key.startswith('head.'):
            official = key.replace('head.fc.', 'head.')
        else:
            whole = rename_key(place) + key.removeprefix('backbone.')
            official = official_key(whole).removeprefix(place)
        shapes[official] = tensor.shape
    return generate_state(shapes, salt)


def _build_attention(arguments: Arguments) -> ShuntedSelfAttention:
    _check_known(arguments, 'dim', 'num_heads', 'qkv_bias', 'qk_scale', 'sr_ratio')
    attention = ShuntedSelfAttention(
        arguments['dim'],
        num_heads=arguments.get('num_heads', 8),
        sr_ratio=arguments.get('sr_ratio', 1),
        qkv_bias=arguments.get('qkv_bias', False),
    )
    return _set_scale_and_eps(attention, arguments)


def _build_mlp(arguments: Arguments) -> Mlp2d:
    _check_known(arguments, 'in_features', 'hidden_features', 'out_features')
    channels = arguments['in_features']
    hidden = arguments.get('hidden_features') or channels
    mlp = Mlp2d(channels, hidden, kernel_size=3, residual=True)
    mlp.fc2 = nn.Linear(hidden, arguments.get('out_features') or channels)
    return mlp


def _build_block(arguments: Arguments) -> TransformerBlock2d:
    known = ('dim', 'num_heads', 'mlp_ratio', 'qkv_bias', 'qk_scale', 'sr_ratio')
    _check_known(arguments, *known, 'norm_layer')
    block = TransformerBlock2d(
        _build_attention(
            {
                name: arguments[name]
                for name in ('dim', 'num_heads', 'qkv_bias', 'sr_ratio')
                if name in arguments
            }
        ),
        arguments['dim'],
        mlp_ratio=arguments.get('mlp_ratio', 4),
        mlp_kernel=3,
        mlp_residual=True,
    )
    return _set_scale_and_eps(block, arguments)


def _build_patch_embedding(arguments: Arguments) -> nn.Module:
    _check_known(arguments, 'patch_size', 'stride', 'in_chans', 'embed_dim')
    return patch_embedding(
        arguments.get('in_chans', 3),
        arguments.get('embed_dim', 768),
        kernel_size=arguments.get('patch_size', 7),
        stride=arguments.get('stride', 4),
    )


def _build_stem(arguments: Arguments) -> nn.Module:
    _check_known(arguments, 'num')
    return stem(64, num_convs=arguments['num'])


def _build_classifier(arguments: Arguments) -> Classifier:
    arguments = {**OFFICIAL_DEFAULTS, **arguments}
    arch = dict(
        {name: arguments[name] for name in PER_STAGE},
        stem_convs=arguments['num_conv'],
        qkv_bias=arguments['qkv_bias'],
    )
    return _classifier(ShuntedTransformer(arch), arguments)


def _build_published(name: str, arguments: Arguments) -> Classifier:
    defaults = {'norm_layer': 'partial(nn.LayerNorm, eps=1e-6)'}
    return _classifier(ShuntedTransformer(name), {**defaults, **arguments})


def _classifier(backbone: ShuntedTransformer, arguments: Arguments) -> Classifier:
    known = ('qk_scale', 'norm_layer', 'num_classes')
    ignored = ('patch_size', 'in_chans')  # by the official class, too
    _check_known(arguments, *OFFICIAL_DEFAULTS, *known, *ignored)
    model = Classifier(backbone, arguments.get('num_classes', 1000))
    return _set_scale_and_eps(model, arguments)


def _set_scale_and_eps(model: nn.Module, arguments: Arguments) -> Any:
    """Set what no published model changes: scale of q @ k and eps of the norms."""
    layer = arguments.get('norm_layer', 'nn.LayerNorm')
    if 'LayerNorm' not in layer:
        raise UnsupportedCaseError(f'norm_layer={layer}')
    eps = re.search(r'eps=([\d.e+-]+)', layer)
    for name, module in model.named_modules():
        if isinstance(module, ShuntedSelfAttention) and arguments.get('qk_scale'):
            module.scale = arguments['qk_scale']
        if re.search(r'(^|\.)(norm[12]|stages\.\d\.norm)$', name):
            module.eps = float(eps[1]) if eps else 1e-5
    return model


def _check_known(arguments: Arguments, *known: str) -> None:
    unknown = set(arguments) - set(known) - NO_EFFECT
    if unknown:
        raise UnsupportedCaseError(f'unknown arguments {sorted(unknown)}')


WHOLE = in_classifier(_convert, head='head')
# How to build the counterpart of an official class, and its place in the whole model,
# where its keys are renamed.
BUILDERS: dict[str, tuple[Callable[[Arguments], nn.Module], str]] = {
    'Attention': (_build_attention, 'block1.0.attn.'),
    'Mlp': (_build_mlp, 'block1.0.mlp.'),
    'Block': (_build_block, 'block1.0.'),
    'OverlapPatchEmbed': (_build_patch_embedding, 'patch_embed2.'),
    'Head': (_build_stem, 'patch_embed1.'),
    'ShuntedTransformer': (_build_classifier, ''),
    'shunted_t': (partial(_build_published, 'tiny'), ''),
    'shunted_s': (partial(_build_published, 'small'), ''),
    'shunted_b': (partial(_build_published, 'base'), ''),
}
