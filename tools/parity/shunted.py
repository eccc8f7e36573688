"""Cases of the Shunted Transformer family."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.conversion.shunted import official_key, rename_key
from mmsparse.models.backbones.shunted_transformer import (
    ShuntedBlock,
    ShuntedTransformer,
    patch_embedding,
    stem,
)
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import DetailMlp2d, ShuntedSelfAttention
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.generated import generate_state
from parity.models import gradient_comparisons, recorded_outputs

Arguments = Mapping[str, Any]

# What a case may have noted inside a part, and which of our modules returns it.
TOKENS = {'q_out': 'q', 'kv_out': 'kv', 'kv1_out': 'coarse.kv', 'kv2_out': 'fine.kv'}
MAPS = {
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
NO_EFFECT = {
    # Dropout is none in evaluation; the rest the official classes themselves ignore.
    *('drop', 'drop_rate', 'drop_path', 'drop_path_rate', 'attn_drop', 'proj_drop'),
    *('attn_drop_rate', 'img_size', 'pretrained'),
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
    official_class = case.info['official_class'].rpartition('.')[2]
    if official_class not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of {official_class}')
    build, place = BUILDERS[official_class]
    model = build(case.info['constructor']).eval()
    state = case.state or _generated_state(model, place, case.info['salt'])
    model.load_state_dict(_convert(state, place))

    x = case.tensors['input'].clone().requires_grad_()
    seen = _run(model, _as_map(x, case.info))
    comparisons = [
        _output_comparison(case, name, seen)
        for name in case.tensors
        if not name.startswith(('input', 'state.', 'cotangent', 'grad.'))
    ]
    if 'cotangent' in case.tensors:
        cotangent = case.tensors['cotangent']
        (_layout_of(cotangent, seen['output']) * cotangent).sum().backward()
        expected = _convert(case.with_prefix('grad.state.'), place)
        comparisons += gradient_comparisons(case, x, model, expected)
    return comparisons


def _as_map(x: Tensor, info: Mapping[str, Any]) -> Tensor:
    if not info['input_layout'].startswith('NLC'):
        return x
    size = (info['forward_args']['H'], info['forward_args']['W'])
    return x.transpose(1, 2).unflatten(2, size)


def _layout_of(stored: Tensor, ours: Tensor) -> Tensor:
    """Our map as row-major tokens, where the official code stores those."""
    is_map = ours.ndim == 4 and stored.ndim == 3
    return ours.flatten(2).transpose(1, 2) if is_map else ours


def _run(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Run a model and name what its parts return as the cases do."""
    named: dict[str, Tensor] = {}

    def note(module: nn.Module, inputs: tuple[Tensor]) -> None:
        named['before_proj'] = inputs[0].flatten(1, 2)

    if isinstance(model, ShuntedSelfAttention):
        model.proj.register_forward_pre_hook(note)
    with recorded_outputs(model) as seen:
        named['output'] = named['logits'] = model(x)
    named['grid'] = torch.tensor(named['output'].shape[2:])
    named.update((name, seen[ours]) for name, ours in MAPS.items() if ours in seen)
    named.update(
        (name, seen[ours].flatten(1, 2))
        for name, ours in TOKENS.items()
        if ours in seen
    )
    if isinstance(model, Classifier):
        for i, stage in enumerate(model.backbone.stages):
            named[f'embed{i + 1}'] = seen[f'downsamples.{i}']
            named[f'stage{i + 1}_prenorm'] = seen[f'stages.{i}.{len(stage) - 2}']
            out = named[f'stage{i + 1}'] = seen[f'stages.{i}.norm']
            tokens = out.flatten(2)  # (B, C, N)
            named[f'stage{i + 1}_mean'] = tokens.mean(-1)
            named[f'stage{i + 1}_std'] = tokens.std(-1, unbiased=False)
            named[f'stage{i + 1}_first'] = tokens[:, :16, :16]
        named['pooled'] = named[f'stage{i + 1}_mean']
    return named


def _output_comparison(case: Case, name: str, seen: Mapping[str, Tensor]) -> Comparison:
    expected = case.tensors[name]
    actual = _layout_of(expected, seen[name])
    if name == 'grid':
        return Comparison(name, actual, expected)
    atol = case.info['outputs'][name]['atol']
    return Comparison(name, actual, expected, atol, case.info['tolerance']['rtol'])


def _convert(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Rename the official state dict of a part, as if it were at a place of a whole."""
    if place:
        return {
            rename_key(place + key).removeprefix(rename_key(place)): tensor
            for key, tensor in state.items()
        }
    return {
        key.replace('head.', 'head.fc.')
        if key.startswith('head.')
        else f'backbone.{rename_key(key)}': tensor
        for key, tensor in state.items()
    }


def _generated_state(model: nn.Module, place: str, salt: str) -> dict[str, Tensor]:
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
    _refuse_unknown(arguments, 'dim', 'num_heads', 'qkv_bias', 'qk_scale', 'sr_ratio')
    attention = ShuntedSelfAttention(
        arguments['dim'],
        num_heads=arguments.get('num_heads', 8),
        sr_ratio=arguments.get('sr_ratio', 1),
        qkv_bias=arguments.get('qkv_bias', False),
    )
    return _with_scale(attention, arguments)


def _build_mlp(arguments: Arguments) -> DetailMlp2d:
    _refuse_unknown(arguments, 'in_features', 'hidden_features', 'out_features')
    channels = arguments['in_features']
    hidden = arguments.get('hidden_features') or channels
    mlp = DetailMlp2d(channels, hidden)
    mlp.fc2 = nn.Linear(hidden, arguments.get('out_features') or channels)
    return mlp


def _build_block(arguments: Arguments) -> ShuntedBlock:
    known = ('dim', 'num_heads', 'mlp_ratio', 'qkv_bias', 'qk_scale', 'sr_ratio')
    _refuse_unknown(arguments, *known, 'norm_layer')
    block = ShuntedBlock(
        arguments['dim'],
        num_heads=arguments['num_heads'],
        mlp_ratio=arguments.get('mlp_ratio', 4),
        sr_ratio=arguments.get('sr_ratio', 1),
        qkv_bias=arguments.get('qkv_bias', False),
    )
    return _with_norm_eps(_with_scale(block, arguments), arguments)


def _build_patch_embedding(arguments: Arguments) -> nn.Module:
    _refuse_unknown(arguments, 'patch_size', 'stride', 'in_chans', 'embed_dim')
    return patch_embedding(
        arguments.get('in_chans', 3),
        arguments.get('embed_dim', 768),
        kernel_size=arguments.get('patch_size', 7),
        stride=arguments.get('stride', 4),
    )


def _build_stem(arguments: Arguments) -> nn.Module:
    _refuse_unknown(arguments, 'num')
    return stem(64, num_convs=arguments['num'])


def _build_classifier(arguments: Arguments) -> Classifier:
    arguments = {**OFFICIAL_DEFAULTS, **arguments}
    arch = dict(
        {name: arguments[name] for name in PER_STAGE},
        stem_convs=arguments['num_conv'],
        qkv_bias=arguments['qkv_bias'],
    )
    return _classifier(ShuntedTransformer(arch), arguments)


def _build_factory(name: str) -> Callable[[Arguments], Classifier]:
    """The published model: what a case says the factory passes is what we call so."""
    norm_layer = 'partial(nn.LayerNorm, eps=1e-6)'
    return lambda arguments: _classifier(
        ShuntedTransformer(name), {'norm_layer': norm_layer, **arguments}
    )


def _classifier(backbone: ShuntedTransformer, arguments: Arguments) -> Classifier:
    known = ('qk_scale', 'norm_layer', 'num_classes')
    ignored = ('patch_size', 'in_chans')  # The official class does so too.
    _refuse_unknown(arguments, *OFFICIAL_DEFAULTS, *known, *ignored)
    channels = backbone.stages[-1].norm.normalized_shape[0]
    model = Classifier(backbone, channels, arguments.get('num_classes', 1000))
    return _with_norm_eps(_with_scale(model, arguments), arguments)


def _with_scale(model: nn.Module, arguments: Arguments) -> Any:
    """Scale products of queries and keys otherwise, as no released model does."""
    for module in model.modules():
        if isinstance(module, ShuntedSelfAttention) and arguments.get('qk_scale'):
            module.scale = arguments['qk_scale']
    return model


def _with_norm_eps(model: nn.Module, arguments: Arguments) -> Any:
    """Give the norms of blocks and stages the eps of the case."""
    layer = arguments.get('norm_layer', 'nn.LayerNorm')
    if 'LayerNorm' not in layer:
        raise UnsupportedCaseError(f'norm_layer={layer}')
    eps = re.search(r'eps=([\d.e+-]+)', layer)
    for name, module in model.named_modules():
        if re.search(r'(^|\.)(norm[12]|stages\.\d\.norm)$', name):
            module.eps = float(eps[1]) if eps else 1e-5
    return model


def _refuse_unknown(arguments: Arguments, *known: str) -> None:
    unknown = set(arguments) - set(known) - NO_EFFECT
    if unknown:
        raise UnsupportedCaseError(f'unknown arguments {sorted(unknown)}')


# How to build the counterpart of an official class, and where in a whole model its
# weights would be: keys of parts are translated as if they were there.
BUILDERS: dict[str, tuple[Callable[[Arguments], nn.Module], str]] = {
    'Attention': (_build_attention, 'block1.0.attn.'),
    'Mlp': (_build_mlp, 'block1.0.mlp.'),
    'Block': (_build_block, 'block1.0.'),
    'OverlapPatchEmbed': (_build_patch_embedding, 'patch_embed2.'),
    'Head': (_build_stem, 'patch_embed1.'),
    'ShuntedTransformer': (_build_classifier, ''),
    'shunted_t': (_build_factory('tiny'), ''),
    'shunted_s': (_build_factory('small'), ''),
    'shunted_b': (_build_factory('base'), ''),
}
