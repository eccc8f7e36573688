"""Cases of the DAT family."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mmsparse.conversion.dat import convert_tensor, official_key, rename_key
from mmsparse.models.backbones.dat import DAT
from mmsparse.models.classifier import Classifier
from mmsparse.models.layers import (
    DeformableAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from parity.cases import Case, Comparison, UnsupportedCaseError
from parity.models import recorded_outputs

Arguments = Mapping[str, Any]


def compare(case: Case) -> list[Comparison]:
    """Run our counterpart of a case and pair every tensor with the official one.

    Args:
        case: The case.

    Returns:
        One comparison for each stored output, gradient and resized table.

    Raises:
        UnsupportedCaseError: We have no counterpart for the class or its arguments.
    """
    kind = case.info['kind']
    if kind not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of kind {kind}')
    model = BUILDERS[kind](case.info['constructor'], case.info['formula']).eval()
    model.load_state_dict(_convert(case.state, model))

    x = case.tensors['input'].clone().requires_grad_()
    with recorded_outputs(model) as outputs, recorded_inputs(model) as inputs:
        y = model(x)
    with torch.no_grad():
        seen = {**_levels(outputs), **_sampling(model, inputs, outputs)}
    seen.update(y=y, logits=y)
    comparisons = [
        _output_comparison(case, name, seen[name]) for name in case.info['outputs']
    ]
    for key, table in _convert(case.with_prefix('loaded.'), model).items():
        ours = model.state_dict()[key]
        comparisons.append(_output_comparison(case, f'loaded.{key}', ours, table))
    if 'grad_y' in case.tensors:
        (y * case.tensors['grad_y']).sum().backward()
        comparisons += _gradient_comparisons(case, x, model)
    return comparisons


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Note the maps that the deformable layers are given.

    Args:
        model: The model, run inside the context.

    Yields:
        The last input of every deformable layer, by its name without ``backbone.``.
    """
    inputs: dict[str, Tensor] = {}

    def note(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            inputs[name] = args[0]

        return hook

    handles = [
        layer.register_forward_pre_hook(note(name))
        for name, layer in _deformable_layers(model)
    ]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _deformable_layers(model: nn.Module) -> list[tuple[str, DeformableAttention2d]]:
    return [
        (name.removeprefix('backbone.'), layer)
        for name, layer in model.named_modules()
        if isinstance(layer, DeformableAttention2d)
    ]


def _levels(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name what the stages and the layers between them returned as the cases do."""
    named = {}
    for name, output in outputs.items():
        part, _, rest = name.partition('.')
        stage, _, rest = rest.partition('.')
        if part == 'stages' and rest.isdigit():
            named[f'stage{int(stage) + 1}'] = output  # the last block's stays
        elif part == 'downsamples' and stage == '0' and rest.isdigit():
            named['stem'] = output  # without the projection behind it
        elif part == 'downsamples' and not rest:
            named[f'down{stage}'] = output
        elif part == 'out_norms' and stage.startswith('layer'):
            named[f'out{int(stage[-1]) + 1}'] = output
    return named


def _sampling(
    model: nn.Module, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Name where and what the deformable layers sampled as the cases do."""
    named = {}
    for name, layer in _deformable_layers(model):
        x, prefix = inputs[name], f'{name}.' if name else ''
        positions = layer.sampling_locations(x)
        sampling = dict(
            pos=positions,
            ref=layer.add_offsets(torch.zeros_like(positions), 0),
            offset_raw=outputs[f'{prefix}conv_offset'],
            x_sampled=layer.sample(x, positions).flatten(2).unsqueeze(2),
        )
        for what, tensor in sampling.items():
            named[official_key(prefix) + what] = tensor
    return named


def _output_comparison(
    case: Case, name: str, actual: Tensor, expected: Tensor | None = None
) -> Comparison:
    limits = case.info['tolerance']['atol'], case.info['tolerance']['rtol']
    expected = case.tensors[name] if expected is None else expected
    return Comparison(name, actual, expected, *limits)


def _gradient_comparisons(case: Case, x: Tensor, model: nn.Module) -> list[Comparison]:
    expected = case.with_prefix('grad.')
    pairs = [('input', x, expected.pop('input'))]
    parameters = dict(model.named_parameters())
    for key, gradient in _convert(expected, model).items():
        pairs.append((key, parameters[key], gradient))
    return [
        Comparison(
            f'grad.{key}',
            ours.grad if ours.grad is not None else torch.zeros_like(ours),
            gradient,
            atol=1e-4 * gradient.abs().max().item() + 1e-5,
        )
        for key, ours, gradient in pairs
    ]


def _convert(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    renamed = {
        rename_key(key): convert_tensor(key, tensor) for key, tensor in state.items()
    }
    renamed.pop(None, None)
    if not isinstance(model, Classifier):
        return renamed
    return {
        key if key.startswith('head.') else f'backbone.{key}': tensor
        for key, tensor in renamed.items()
    }


def _build_window_attention(arguments: Arguments, formulation: str) -> nn.Module:
    window = arguments['window_size']
    if not isinstance(window, int):
        if len(set(window)) > 1:
            raise UnsupportedCaseError(f'window_size={window}')
        window = window[0]
    return WindowAttention2d(
        arguments['dim'],
        arguments['heads'],
        window_size=window,
        shift=arguments.get('shift_size', 0),
    )


def _build_neighborhood_attention(arguments: Arguments, formulation: str) -> nn.Module:
    if arguments.get('dilation') not in (None, 1):
        raise UnsupportedCaseError(f'dilation={arguments["dilation"]}')
    return NeighborhoodAttention2d(
        arguments['dim'], arguments['num_heads'], arguments['kernel_size']
    )


def _build_deformable_attention(arguments: Arguments, formulation: str) -> nn.Module:
    if formulation == 'v2022':
        kernel = OFFSET_KERNELS[arguments['stage_idx']]
    else:
        kernel = arguments['ksize']
    return DeformableAttention2d(
        arguments['n_heads'] * arguments['n_head_channels'],
        num_heads=arguments['n_heads'],
        num_groups=arguments['n_groups'],
        stride=arguments['stride'],
        offset_kernel=kernel,
        offset_range=arguments['offset_range_factor'],
        formulation=formulation,
        bias=_bias(
            arguments['use_pe'],
            arguments.get('dwc_pe', False),
            arguments.get('fixed_pe', False),
            arguments.get('log_cpb', False),
        ),
        map_size=tuple(arguments['q_size']),
        use_offsets=not arguments.get('no_off', False),
    )


def _bias(use_pe: bool, dwc_pe: bool, fixed_pe: bool, log_cpb: bool) -> str:
    """The kind of bias that the official flags choose."""
    if not use_pe:
        return 'none'
    if dwc_pe:
        return 'depthwise'
    if fixed_pe:
        return 'fixed'
    return 'log_cpb' if log_cpb else 'table'


def _build_backbone(arguments: Arguments, formulation: str, **settings: Any) -> DAT:
    kinds = tuple(''.join(kinds) for kinds in arguments['stage_spec'])
    _refuse(arguments, kinds)

    def per_stage(name: str, default: Any) -> tuple:
        return tuple(arguments.get(name, [default] * len(kinds)))

    flags = (
        per_stage(name, False)
        for name in ('use_pes', 'dwc_pes', 'fixed_pes', 'log_cpb')
    )
    arch = dict(
        formulation=formulation,
        embed_dims=arguments['dims'],
        depths=arguments['depths'],
        num_heads=arguments['heads'],
        kinds=kinds,
        groups=per_stage('groups', -1),
        strides=per_stage('strides', -1),
        offset_kernel=tuple(arguments.get('ksizes', OFFSET_KERNELS)),
        offset_range=per_stage('offset_range_factor', -1),
        bias=tuple(_bias(*stage) for stage in zip(*flags, strict=True)),
        use_offsets=tuple(not off for off in per_stage('no_offs', False)),
        window_size=per_stage('window_sizes', 7),
        neighborhood=per_stage('nat_ksizes', 3),
        mlp_ratio=arguments.get('expansion', 4),
        conv_mlp=per_stage('use_dwc_mlps', False),
        local_perception=per_stage('use_lpus', False),
        layer_scale=per_stage('layer_scale_values', -1),
        img_size=arguments['img_size'],
        conv_stem=arguments.get('use_conv_patches', False),
        stem_dims=arguments['dim_stem'],
    )
    return DAT(arch, **settings)


def _refuse(arguments: Arguments, kinds: tuple[str, ...]) -> None:
    """Refuse what our backbone does not have."""
    if set(''.join(kinds)) - set('LSND'):
        raise UnsupportedCaseError(f'stage_spec={arguments["stage_spec"]}')
    if arguments.get('patch_size', 4) != 4:
        raise UnsupportedCaseError(f'patch_size={arguments["patch_size"]}')
    if any(arguments.get('use_cmt_mlps', ())):
        raise UnsupportedCaseError('use_cmt_mlps')


def _build_classifier(arguments: Arguments, formulation: str) -> Classifier:
    backbone = _build_backbone(arguments, formulation)
    return Classifier(backbone, arguments['dims'][-1], arguments['num_classes'])


def _build_dense(arguments: Arguments, formulation: str) -> DAT:
    """A backbone with the official one's outputs: all levels, some without norm."""
    levels = tuple(range(len(arguments['dims'])))
    backbone = _build_backbone(
        arguments, formulation, out_indices=levels, out_norm='layer'
    )
    for level in set(levels) - set(arguments['out_indices']):
        backbone.out_norms[f'layer{level}'] = nn.Identity()
    return backbone


OFFSET_KERNELS = (9, 7, 5, 3)  # by stage; written into the code of 2022
BUILDERS: dict[str, Callable[[Arguments, str], nn.Module]] = {
    'local': _build_window_attention,
    'shift': _build_window_attention,
    'nat': _build_neighborhood_attention,
    'dattn': _build_deformable_attention,
    'cls': _build_classifier,
    'load': _build_classifier,
    'dense': _build_dense,
}
