"""DAT and DAT++: stages of local blocks and blocks of deformable attention."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from mmsparse.models.backbones.arch import (
    FLAG,
    INTEGER,
    NUMBER,
    ODD,
    POSITIVE,
    Kind,
    Setting,
    integer,
    one_of,
    optional,
    resolve_arch,
)
from mmsparse.models.backbones.base import StagedBackbone, drop_path_rates
from mmsparse.models.layers import (
    ConvMlp2d,
    DeformableAttention2d,
    DepthwiseConv2d,
    DropPath,
    LayerNorm2d,
    LayerScale2d,
    Mlp2d,
    MultiScaleDeformableAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from mmsparse.models.layers.common import NORMS, check_choice, check_heads
from mmsparse.models.layers.deformable_attention import BIASES, FORMULATIONS
from mmsparse.registry import MODELS

EPS = 1e-5
OUT_NORMS = ('class', 'layer')

_LETTERS = set('LSNDM')
_KINDS = Kind(
    "letters of 'LSNDM', one for each block",
    lambda x: isinstance(x, str) and x != '' and set(x) <= _LETTERS,
)
_STAGE = partial(Setting, by_stage=True)
_SETTINGS = dict(
    embed_dims=Setting(integer(2)),
    depths=Setting(integer(1)),
    num_heads=Setting(integer(1)),
    kinds=Setting(_KINDS),
    formulation=Setting(one_of(FORMULATIONS), None),
    groups=_STAGE(INTEGER, 1),
    strides=_STAGE(INTEGER, 1),
    offset_kernel=_STAGE(integer(1), 5),
    offset_range=_STAGE(NUMBER, -1),
    bias=_STAGE(one_of(BIASES), 'table'),
    use_offsets=_STAGE(FLAG, True),
    window_size=_STAGE(integer(1), 7),
    neighborhood=_STAGE(ODD, 7),
    num_points=_STAGE(integer(1), 16),
    mlp_ratio=_STAGE(POSITIVE, 4),
    conv_mlp=_STAGE(FLAG, False),
    local_perception=_STAGE(FLAG, False),
    layer_scale=_STAGE(NUMBER, 0),
    img_size=Setting(integer(1), 224),
    conv_stem=Setting(FLAG, False),
    stem_dims=Setting(optional(integer(2)), None),
    downsample_norm=Setting(one_of(NORMS), 'layer'),
    downsample_act=Setting(FLAG, False),
)
_DAT = dict(
    formulation='v2022',
    kinds=('LS', 'LS', 'LD', 'LD'),
    groups=(-1, -1, 3, 6),
    offset_kernel=(9, 7, 5, 3),
    offset_range=2,
)
_DAT_BASE = dict(
    _DAT,
    embed_dims=(128, 256, 512, 1024),
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    groups=(-1, -1, 4, 8),
)
_DATPP = dict(
    formulation='v2023',
    depths=(2, 4, 18, 2),
    kinds=('ND', 'ND', 'ND', 'DD'),
    strides=(8, 4, 2, 1),
    offset_kernel=(9, 7, 5, 3),
    conv_stem=True,
    conv_mlp=True,
    local_perception=True,
)


@MODELS.register_module()
class DAT(StagedBackbone):
    """DAT (``tiny``, ``small``, ``base``) and DAT++ (``pp-...``) as a backbone.

    Papers: `Vision Transformer with Deformable Attention
    <https://arxiv.org/abs/2201.00520>`_ and `DAT++
    <https://arxiv.org/abs/2309.01430>`_. Any height and width from the last stride on
    works: windows are padded, and tables of relative positions stretch.

    An architecture has, per stage, ``embed_dims``, ``depths``, ``num_heads`` and
    ``kinds``, the kinds of blocks, repeated from the first block on: ``L`` window
    attention, ``S`` shifted windows, ``N`` neighborhood attention, ``D`` deformable
    attention, ``M`` Deformable DETR's attention. It must say its ``formulation``,
    ``v2022`` or ``v2023`` (see :class:`DeformableAttention2d`). It may have, as one
    value or one for each stage:

    - for D: ``groups``, ``strides``, ``offset_kernel``, ``offset_range``, ``bias``,
      ``use_offsets``, as that layer has them;
    - ``window_size`` for L and S, ``neighborhood`` for N, ``num_points`` for M;
    - ``mlp_ratio``, ``conv_mlp`` (a depthwise convolution in the MLP),
      ``local_perception`` (one before each block) and ``layer_scale``, the initial
      scale of attention and MLP, 0 for none;

    and for all stages ``img_size``, the side of the pictures that the tables are made
    for, ``conv_stem`` (overlapping convolutions for stem and downsampling),
    ``stem_dims``, the width of the stem if it is not that of the first stage, and
    ``downsample_norm`` (``batch`` or ``layer``) and ``downsample_act``: the norm of
    stem and downsampling, and whether GELU follows. The published models have the norm
    of layers and no GELU; ``nano`` has that of batches and GELU.

    Args:
        arch: Name of an entry of ``arch_settings``, or such an entry, or a dict with
            the name of one under ``base`` and the settings that differ.
        out_indices: Stages to return, counted from 0.
        out_norm: Norm of the returned maps: ``class`` as before the classifier, or
            ``layer`` as for dense tasks. They differ in name only, so that weights of
            one are not loaded into the other.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        frozen_stages: Stages without training, from the first on; 0 for the stem alone
            and -1 for none.
        norm_eval: Keep BatchNorm layers in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``. The released models start from
            torch's own initialization of every layer, and so does this one.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another.
    """

    default_init_cfg = ()

    arch_settings: Mapping[str, Mapping[str, Any]] = {
        'nano': dict(
            _DATPP,
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 1),
            kinds=('ND', 'ND', 'ND', 'D'),
            num_heads=(1, 2, 4, 8),
            groups=(1, 1, 2, 4),
            strides=(4, 2, 1, 1),
            offset_kernel=(5, 3, 3, 3),
            neighborhood=(5, 5, 3, 3),
            mlp_ratio=3,
            img_size=128,
            downsample_norm='batch',
            downsample_act=True,
        ),
        'tiny': dict(
            _DAT,
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24),
        ),
        'small': dict(
            _DAT,
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 18, 2),
            num_heads=(3, 6, 12, 24),
        ),
        'base': _DAT_BASE,
        'base-384': dict(_DAT_BASE, window_size=12, img_size=384),
        'pp-tiny': dict(
            _DATPP,
            embed_dims=(64, 128, 256, 512),
            num_heads=(2, 4, 8, 16),
            groups=(1, 2, 4, 8),
        ),
        'pp-small': dict(
            _DATPP,
            embed_dims=(96, 192, 384, 768),
            num_heads=(3, 6, 12, 24),
            groups=(1, 2, 3, 6),
        ),
        'pp-base': dict(
            _DATPP,
            embed_dims=(128, 256, 512, 1024),
            num_heads=(4, 8, 16, 32),
            groups=(2, 4, 8, 16),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'pp-tiny',
        out_indices: Sequence[int] = (3,),
        out_norm: str = 'class',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.arch_settings, _SETTINGS)
        _check(arch, out_norm)
        widths = arch['embed_dims']
        rates = drop_path_rates(drop_path_rate, arch['depths'])
        super().__init__(
            widths,
            out_indices,
            out_norm,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
        )
        self.downsamples = nn.ModuleList()
        self.stages = nn.ModuleList()
        for i in range(max(out_indices) + 1):  # later stages would serve nothing
            self.downsamples.append(_downsample(arch, i) if i else _stem(arch))
            if arch['downsample_act']:
                self.downsamples[i].append(nn.GELU())
            self.stages.append(_build_stage(_settings(arch, stage=i), rates[i]))
        self.out_norms = nn.ModuleDict(
            {f'{out_norm}{i}': LayerNorm2d(widths[i], EPS) for i in out_indices}
        )
        self.freeze()

    def no_weight_decay(self) -> set[str]:
        """Return norms and position biases; tables of neighborhoods do decay."""
        names = super().no_weight_decay()
        for prefix, module in self.named_modules():
            if isinstance(module, NeighborhoodAttention2d):
                names.discard(f'{prefix}.relative_position_bias_table')
            if isinstance(module, DeformableAttention2d):
                biases = (name for name, _ in module.named_parameters(prefix))
                names.update(x for x in biases if '.cpb_mlp.' in x or '.lepe.' in x)
        return names


class DATBlock(nn.Module):
    """Attention and MLP, each with a residual around it, perhaps after a convolution.

    Args:
        attn: The attention layer.
        mlp: The MLP.
        channels: C of the map.
        local_perception: Add a depthwise convolution of the map to it first.
        layer_scale: Initial scale of attention and MLP, 0 for none.
        drop_path: Probability of dropping attention or MLP for a sample.
    """

    def __init__(
        self,
        attn: nn.Module,
        mlp: nn.Module,
        channels: int,
        local_perception: bool = False,
        layer_scale: float = 0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()

        def scale() -> nn.Module:
            if layer_scale <= 0:
                return nn.Identity()
            return LayerScale2d(channels, layer_scale)

        self.pos_conv = (
            DepthwiseConv2d(channels, 3, residual=True) if local_perception else None
        )
        self.norm1 = LayerNorm2d(channels, EPS)
        self.attn = attn
        self.layer_scale1 = scale()
        self.norm2 = LayerNorm2d(channels, EPS)
        self.mlp = mlp
        self.layer_scale2 = scale()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.pos_conv is not None:
            x = self.pos_conv(x)
        x = x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


def _settings(arch: Mapping[str, Any], stage: int) -> SimpleNamespace:
    """What an architecture says of one stage."""
    settings = {
        name: value[stage] if isinstance(value, (tuple, list)) else value
        for name, value in arch.items()
    }
    return SimpleNamespace(**settings, map_size=arch['img_size'] // 4 // 2**stage)


def _build_stage(stage: SimpleNamespace, rates: Sequence[float]) -> nn.Sequential:
    kinds = islice(cycle(stage.kinds), stage.depths)
    return nn.Sequential(
        *(
            DATBlock(
                attn=_build_attention(stage, kind),
                mlp=_build_mlp(stage),
                channels=stage.embed_dims,
                local_perception=stage.local_perception,
                layer_scale=stage.layer_scale,
                drop_path=rate,
            )
            for kind, rate in zip(kinds, rates, strict=True)
        )
    )


def _build_attention(stage: SimpleNamespace, kind: str) -> nn.Module:
    channels, num_heads = stage.embed_dims, stage.num_heads
    if kind in 'LS':
        # Swin shifts by the floor of half a window, DAT by its ceiling.
        shift = -(-stage.window_size // 2) if kind == 'S' else 0
        shift %= stage.window_size  # windows of one cell stay
        return WindowAttention2d(channels, num_heads, stage.window_size, shift)
    if kind == 'N':
        return NeighborhoodAttention2d(channels, num_heads, stage.neighborhood)
    if kind == 'M':
        return MultiScaleDeformableAttention2d(channels, num_heads, stage.num_points)
    return DeformableAttention2d(
        channels,
        num_heads,
        num_groups=stage.groups,
        stride=stage.strides,
        offset_kernel=stage.offset_kernel,
        offset_range=stage.offset_range,
        formulation=stage.formulation,
        bias=stage.bias,
        map_size=stage.map_size,
        use_offsets=stage.use_offsets,
    )


def _build_mlp(stage: SimpleNamespace) -> nn.Module:
    if stage.conv_mlp:
        residual = stage.formulation == 'v2023'
        return ConvMlp2d(stage.embed_dims, stage.mlp_ratio, residual)
    return Mlp2d(stage.embed_dims, stage.mlp_ratio)


def _stem(arch: Mapping[str, Any]) -> nn.Sequential:
    width, norm = arch['embed_dims'][0], arch['downsample_norm']
    channels = arch['stem_dims'] if arch['stem_dims'] is not None else width
    if not arch['conv_stem']:
        stem = _conv_norm(3, channels, norm, kernel_size=4, stride=4)
    elif arch['formulation'] == 'v2022':
        stem = _conv_norm(3, channels, norm, kernel_size=7, stride=4)
    else:
        stem = nn.Sequential(
            *_conv_norm(3, channels // 2, norm, kernel_size=3, stride=2),
            nn.GELU(),
            *_conv_norm(channels // 2, channels, norm, kernel_size=3, stride=2),
        )
    if channels != width:
        stem.add_module('proj', nn.Conv2d(channels, width, kernel_size=1))
    return stem


def _downsample(arch: Mapping[str, Any], stage: int) -> nn.Sequential:
    before, after = arch['embed_dims'][stage - 1 : stage + 1]
    kernel_size = 3 if arch['conv_stem'] else 2
    return _conv_norm(
        before, after, arch['downsample_norm'], kernel_size, stride=2, bias=False
    )


def _conv_norm(
    in_channels: int,
    out_channels: int,
    norm: str,
    kernel_size: int,
    stride: int,
    bias: bool = True,
) -> nn.Sequential:
    # Odd kernels overlap and are padded; even ones are as long as their stride.
    padding = kernel_size // 2 if kernel_size % 2 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias),
        NORMS[norm](out_channels, EPS),
    )


def _check(arch: Mapping[str, Any], out_norm: str) -> None:
    if arch['formulation'] is None:
        raise ValueError(
            f'An arch dict must set formulation to one of {sorted(FORMULATIONS)}: the '
            f'weights do not tell; got None.'
        )
    check_choice('out_norm', out_norm, OUT_NORMS)
    least = 4 * 2 ** (len(arch['depths']) - 1)
    if arch['img_size'] < least:
        raise ValueError(
            f'img_size must be at least {least}, the stride of the last stage; got '
            f'{arch["img_size"]}.'
        )
    for i in range(len(arch['depths'])):
        stage = _settings(arch, i)
        check_heads(stage.embed_dims, stage.num_heads, name=f'embed_dims[{i}]')
        if 'D' in stage.kinds[: stage.depths]:
            _check_deformable(stage, i)


def _check_deformable(stage: SimpleNamespace, i: int) -> None:
    """What stages without deformable blocks may leave at -1."""
    if stage.groups < 1 or stage.num_heads % stage.groups:
        raise ValueError(
            f'groups[{i}] must divide num_heads[{i}]={stage.num_heads}; got '
            f'{stage.groups}.'
        )
    most = stage.map_size if stage.bias == 'fixed' else math.inf
    if not 1 <= stage.strides <= most:
        raise ValueError(
            f'strides[{i}] must be at least 1, and with the fixed bias at most the '
            f'side of the map that it is made for, {stage.map_size}; got '
            f'{stage.strides}.'
        )
