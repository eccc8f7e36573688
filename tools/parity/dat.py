"""Golden cases of DAT."""

from collections.abc import Callable
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
from parity.models import Arguments, Call, State, choose, compare_model, in_classifier


def compare(case: Case) -> list[Comparison]:
    """Compare the outputs, gradients and resized tables of a case."""
    kind = case.info['kind']
    if kind not in BUILDERS:
        raise UnsupportedCaseError(f'no counterpart of kind {kind}')
    model = BUILDERS[kind](case.info['constructor'], case.info['formula'])
    convert = _convert
    if isinstance(model, Classifier):
        convert = in_classifier(_convert, head='cls_head')

    def name_outputs(y: Any, calls: dict[str, Call]) -> dict[str, Tensor]:
        sampling = _sampling(model, calls)
        return {**_stages(calls), **sampling, 'y': y, 'logits': y, 'output': y}

    comparisons = compare_model(case, model, case.state, convert, name_outputs)
    for key, table in convert(case.with_prefix('loaded.')).items():
        resized = model.state_dict()[key]
        comparisons.append(case.compare(f'loaded.{key}', resized, table))
    return comparisons


def _convert(state: State) -> State:
    converted = {
        rename_key(key): convert_tensor(key, tensor) for key, tensor in state.items()
    }
    converted.pop(None, None)
    return converted


def _stages(calls: dict[str, Call]) -> dict[str, Tensor]:
    """Name the outputs of the stages and of the layers between them."""
    named = {}
    for name, call in calls.items():
        part, _, rest = name.partition('.')
        stage, _, rest = rest.partition('.')
        if part == 'stages' and rest.isdigit():
            named[f'stage{int(stage) + 1}'] = call.output  # of the last block
        elif part == 'downsamples' and stage == '0' and rest.isdigit():
            named['stem'] = call.output  # without the projection after it
        elif part == 'downsamples' and not rest:
            named[f'down{stage}'] = call.output
        elif part == 'out_norms' and stage.startswith('layer'):
            named[f'out{int(stage[-1]) + 1}'] = call.output
    return named


@torch.no_grad()
def _sampling(model: nn.Module, calls: dict[str, Call]) -> dict[str, Tensor]:
    """Name sampling locations and sampled features of the deformable layers."""
    named = {}
    for name, layer in model.named_modules():
        name = name.removeprefix('backbone.')
        if not isinstance(layer, DeformableAttention2d):
            continue
        (x,), prefix = calls[name].args, f'{name}.' if name else ''
        positions = layer.sampling_locations(x)
        sampling = dict(
            pos=positions,
            ref=layer.add_offsets(torch.zeros_like(positions), 0),
            offset_raw=calls[f'{prefix}conv_offset'].output,
            x_sampled=layer.sample(x, positions).flatten(2).unsqueeze(2),
        )
        for key, tensor in sampling.items():
            named[official_key(prefix) + key] = tensor
    return named


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
    choose('dilation', arguments.get('dilation'), {None: 1, 1: 1})
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
    """The position bias that the official flags choose."""
    if not use_pe:
        return 'none'
    if dwc_pe:
        return 'depthwise'
    if fixed_pe:
        return 'fixed'
    return 'log_cpb' if log_cpb else 'table'


def _build_backbone(arguments: Arguments, formulation: str, **settings: Any) -> DAT:
    block_types = tuple(''.join(types) for types in arguments['stage_spec'])
    if set(''.join(block_types)) - set('LSND'):
        raise UnsupportedCaseError(f'stage_spec={arguments["stage_spec"]}')
    choose('patch_size', arguments.get('patch_size', 4), {4: 4})
    if any(arguments.get('use_cmt_mlps', ())):
        raise UnsupportedCaseError('use_cmt_mlps')

    def per_stage(name: str, default: Any) -> tuple:
        return tuple(arguments.get(name, [default] * len(block_types)))

    flags = (
        per_stage(name, False)
        for name in ('use_pes', 'dwc_pes', 'fixed_pes', 'log_cpb')
    )
    arch = dict(
        formulation=formulation,
        embed_dims=arguments['dims'],
        depths=arguments['depths'],
        num_heads=arguments['heads'],
        block_types=block_types,
        num_groups=tuple(max(x, 1) for x in per_stage('groups', 1)),
        strides=tuple(max(x, 1) for x in per_stage('strides', 1)),
        offset_kernels=tuple(arguments.get('ksizes', OFFSET_KERNELS)),
        offset_ranges=per_stage('offset_range_factor', -1),
        position_biases=tuple(_bias(*stage) for stage in zip(*flags, strict=True)),
        use_offsets=tuple(not off for off in per_stage('no_offs', False)),
        window_sizes=per_stage('window_sizes', 7),
        neighborhood_sizes=per_stage('nat_ksizes', 3),
        mlp_ratios=arguments.get('expansion', 4),
        mlp_kernels=tuple(3 * x for x in per_stage('use_dwc_mlps', False)),
        pos_kernels=tuple(3 * x for x in per_stage('use_lpus', False)),
        layer_scales=tuple(
            x if x > 0 else None for x in per_stage('layer_scale_values', -1)
        ),
        img_size=arguments['img_size'],
        downsampling='overlapping'
        if arguments.get('use_conv_patches', False)
        else 'patches',
        stem_channels=arguments['dim_stem'],
    )
    return DAT(arch, **settings)


def _build_classifier(arguments: Arguments, formulation: str) -> Classifier:
    backbone = _build_backbone(arguments, formulation)
    return Classifier(backbone, arguments['num_classes'])


def _build_dense(arguments: Arguments, formulation: str) -> DAT:
    """A backbone that returns all stages, as the official one, some without norm."""
    levels = tuple(range(len(arguments['dims'])))
    backbone = _build_backbone(
        arguments, formulation, out_indices=levels, out_norm='layer'
    )
    for level in set(levels) - set(arguments['out_indices']):
        backbone.out_norms[f'layer{level}'] = nn.Identity()
    return backbone


OFFSET_KERNELS = (9, 7, 5, 3)  # by stage; fixed in the code of 2022
BUILDERS: dict[str, Callable[[Arguments, str], nn.Module]] = {
    'local': _build_window_attention,
    'shift': _build_window_attention,
    'nat': _build_neighborhood_attention,
    'dattn': _build_deformable_attention,
    'cls': _build_classifier,
    'load': _build_classifier,
    'dense': _build_dense,
}
