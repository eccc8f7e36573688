"""Cases of the BiFormer family."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from mmsparse.checkpoint.biformer import rename_key
from mmsparse.models.backbones.biformer import BiFormer, BiFormerBlock
from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    ConvMixer2d,
    FullAttention2d,
    biformer_attention,
)
from mmsparse.ops.routing import attention_weights
from mmsparse.parity.cases import Case, Comparison, UnsupportedCaseError
from mmsparse.parity.models import Classifier, recorded_outputs

Arguments = Mapping[str, Any]


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
    model = BUILDERS[official_class](case.info['constructor']).eval()
    model.load_state_dict(_convert(case.state))

    nhwc = case.info['input_layout'] == 'NHWC'
    x = case.tensors['input'].clone().requires_grad_()
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
        comparisons += _gradient_comparisons(case, x, model)
    return comparisons


class Recorder(ExitStack):
    """Notes what passes through a model's parts and through the routing ops."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.routed: list[tuple] = []
        self.descriptors: list[tuple] = []
        self.seen = self.enter_context(recorded_outputs(model))

    def __enter__(self) -> 'Recorder':
        super().__enter__()
        for name, calls in (
            ('routed_attention', self.routed),
            ('route_regions', self.descriptors),
        ):
            self.enter_context(
                mock.patch.object(
                    biformer_attention,
                    name,
                    _spy(getattr(biformer_attention, name), calls),
                )
            )
        return self

    def outputs(self, case: Case, out: Any, nhwc: bool) -> dict[str, Tensor]:
        """Name what was seen as the case does; ``final`` is what gets the cotangent."""
        seen = dict(self.seen)
        named = {
            'lepe': seen.get('local'),
            'norm1': seen.get('norm1'),
            'attn_out': seen.get('attn'),
            'norm2': seen.get('norm2'),
            'mlp_out': seen.get('mlp'),
        }
        for i in range(4):
            named[f'down{i + 1}'] = seen.get(f'downsamples.{i}')
            stages = [seen[name] for name in seen if name.startswith(f'stages.{i}.')]
            named[f'stage{i + 1}'] = stages[-1] if stages else None
        if isinstance(out, tuple):
            named.update((f'out{i}', level) for i, level in enumerate(out))
            named['final'] = torch.cat([level.flatten() for level in out])
        else:
            named['final'] = out.permute(0, 2, 3, 1) if nhwc else out
        named['output'] = named['logits'] = named['final']
        if 'out_norms.batch3' in seen:
            named['norm'] = seen['out_norms.batch3']
            named['pooled'] = named['norm'].mean((2, 3))
        for key, value in list(named.items()):
            if key in ('norm1', 'attn_out', 'norm2', 'mlp_out') and value is not None:
                named[key] = value.permute(0, 2, 3, 1)
        named.update(self._routing(case))
        return named

    def _routing(self, case: Case) -> dict[str, Tensor]:
        named = {}
        names = sorted(
            (name for name in case.tensors if name.startswith('routing.')),
            key=lambda name: [int(x) for x in name.split('.') if x.isdigit()],
        )
        for name, (_, _, _, routes, *_) in zip(names, self.routed, strict=False):
            named[name] = routes
        if len(self.routed) == 1:
            q, k, _, routes, num_heads, scale = self.routed[0]
            query, key, _ = self.descriptors[0]
            logits = query @ key.transpose(-2, -1)
            named.update(
                q_region=query / scale,
                k_region=key,
                routing_logits=logits,
                routing_idx=routes,
                routing_weight=logits.gather(-1, routes).softmax(-1),
                attn=attention_weights(q, k, routes, num_heads, scale).flatten(0, 1),
            )
        return named


def _spy(function: Callable, calls: list[tuple]) -> Callable:
    def call(*args: Any) -> Tensor:
        calls.append(args)
        return function(*args)

    return call


def _output_comparison(case: Case, name: str, actual: Tensor) -> Comparison:
    expected = case.tensors[name]
    if name.startswith('routing.') or name == 'routing_idx':
        return Comparison(name, actual, expected, as_sets=True)
    atol = case.info['outputs'][name]['atol']
    return Comparison(name, actual, expected, atol, case.info['tolerance']['rtol'])


def _gradient_comparisons(case: Case, x: Tensor, model: nn.Module) -> list[Comparison]:
    tolerance = case.info['tolerance']
    limits = tolerance['grad_atol'], tolerance['grad_rtol']
    parameters = dict(model.named_parameters())
    expected = _convert(case.with_prefix('grad.state.'))
    return [
        Comparison('grad.input', x.grad, case.tensors['grad.input'], *limits),
        *(
            Comparison(f'grad.{key}', parameters[key].grad, gradient, *limits)
            for key, gradient in expected.items()
        ),
    ]


def _convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith('head.') for key in state):
        return {
            key.replace('head.', 'head.fc.')
            if key.startswith('head.')
            else f'backbone.{rename_key(key)}': tensor
            for key, tensor in state.items()
        }
    return {rename_key(key): tensor for key, tensor in state.items()}


def _build_attention(arguments: Arguments) -> nn.Module:
    _refuse(
        arguments,
        kv_downsample_mode='identity',
        soft_routing=False,
        param_routing=False,
        qk_scale=None,
        param_attention='qkvo',
    )
    return BiLevelRoutingAttention(
        arguments['dim'],
        num_heads=arguments.get('num_heads', 8),
        topk=arguments.get('topk', 4),
        regions_per_side=arguments.get('n_win', 7),
        qk_channels=arguments.get('qk_dim'),
        local_kernel=arguments.get('side_dwconv', 3),
    )


def _build_block(arguments: Arguments) -> BiFormerBlock:
    _refuse(
        arguments,
        layer_scale_init_value=-1,
        pre_norm=True,
        mlp_dwconv=False,
        kv_downsample_mode='identity',
    )
    channels, topk = arguments['dim'], arguments['topk']
    if topk == 0:
        attention: nn.Module = ConvMixer2d(channels)
    elif topk > 0:
        attention = _build_attention(arguments)
    else:
        kernel = arguments.get('side_dwconv', 3) if topk == -2 else 0
        attention = FullAttention2d(channels, local_kernel=kernel)
    return BiFormerBlock(
        attention,
        channels,
        mlp_ratio=arguments['mlp_ratio'],
        pos_kernel=arguments['before_attn_dwconv'],
    )


def _refuse(arguments: Arguments, **ours: Any) -> None:
    """Refuse arguments other than what our parts do."""
    for name, value in ours.items():
        if arguments.get(name, value) != value:
            raise UnsupportedCaseError(f'{name}={arguments[name]!r}')


def _build_backbone(arguments: Arguments, **settings: Any) -> BiFormer:
    _refuse(
        arguments,
        layer_scale_init_value=-1,
        pre_norm=True,
        kv_downsample_mode='identity',
        pe=None,
    )
    if tuple(arguments['qk_dims']) != tuple(arguments['embed_dim']):
        raise UnsupportedCaseError(f'qk_dims={arguments["qk_dims"]}')
    if -1 in arguments['topks']:
        raise UnsupportedCaseError('topk -1 beside a local kernel')
    modes = {-2: 'all'}
    arch = dict(
        embed_dims=arguments['embed_dim'],
        depths=arguments['depth'],
        num_heads=[
            8 if topk < 0 else width // arguments['head_dim']
            for width, topk in zip(
                arguments['qk_dims'], arguments['topks'], strict=True
            )
        ],
        topks=[modes.get(topk, topk) for topk in arguments['topks']],
        mlp_ratios=arguments['mlp_ratios'],
        local_kernel=arguments['side_dwconv'],
        pos_kernel=arguments['before_attn_dwconv'],
    )
    return BiFormer(arch, regions_per_side=arguments['n_win'], **settings)


def _build_classifier(arguments: Arguments) -> Classifier:
    channels = arguments['embed_dim'][-1]
    return Classifier(_build_backbone(arguments), channels, arguments['num_classes'])


def _build_dense(arguments: Arguments) -> BiFormer:
    return _build_backbone(arguments, out_indices=(0, 1, 2, 3), out_norm='layer')


BUILDERS: dict[str, Callable[[Arguments], nn.Module]] = {
    'BiLevelRoutingAttention': _build_attention,
    'Attention': lambda arguments: FullAttention2d(arguments['dim'], local_kernel=0),
    'AttentionLePE': lambda arguments: FullAttention2d(
        arguments['dim'], local_kernel=arguments['side_dwconv']
    ),
    'Block': _build_block,
    'BiFormer': _build_classifier,
    'BiFormer_mm': _build_dense,
}
