"""DAT and DAT++: stages of local attention and deformable attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Annotated, Any, Literal

from torch import nn

from mmsparse.models.backbones.arch import (
    Count,
    Downsampling,
    KernelSize,
    Norm,
    OddSize,
    PerStage,
    Requirement,
    SizedArch,
    at_least,
)
from mmsparse.models.backbones.base import (
    OUT_NORMS,
    Stage,
    StagedBackbone,
    drop_path_rates,
    stage_errors,
)
from mmsparse.models.layers import (
    DeformableAttention2d,
    MultiScaleDeformableAttention2d,
    NeighborhoodAttention2d,
    WindowAttention2d,
)
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.common import check_choice
from mmsparse.models.layers.norm import NORMS, LayerNorm2d
from mmsparse.registry import MODELS

EPS = 1e-5
# Parameters of window and deformable attention that encode relative positions.
POSITION_BIASES = ('relative_position_bias_table', 'cpb_mlp', 'lepe')

BlockTypes = Annotated[
    str,
    Requirement(
        "letters of 'LSNDM', one for each block", lambda x: x and set(x) <= set('LSNDM')
    ),
]


@dataclass(frozen=True, kw_only=True)
class DATArch(SizedArch):
    """Settings of a DAT or DAT++, in addition to those of :class:`SizedArch`.

    Args:
        block_types: The papers' letters, repeated over the blocks of a stage: ``L``
            window attention, ``S`` shifted windows, ``N`` neighborhood attention, ``D``
            deformable attention, ``M`` Deformable DETR's attention.
        formulation: ``v2022`` as in the release of DAT, ``v2023`` as in that of DAT++;
            see :class:`DeformableAttention2d`.
        num_groups: Groups of heads of D; divides ``num_heads``.
        strides: Stride of the keys of D.
        offset_kernels: Kernel size of the offset network of D.
        offset_ranges: Bound of the offsets of D.
        position_biases: Relative position bias of D.
        use_offsets: Whether D learns offsets.
        window_sizes: Window size of L and S.
        neighborhood_sizes: Kernel size of N.
        num_points: Sampling points per head of M.
        mlp_kernels: Kernel size of a depthwise convolution in the MLP, 0 for none; it
            has a residual connection in ``v2023``.
        pos_kernels: Kernel size of a depthwise convolution before the attention (the
            paper's local perception unit), 0 for none.
        layer_scales: Initial value of LayerScale, None for no LayerScale.
        stem_channels: Channels of the stem; those of the first stage if None.
        downsampling: ``overlapping`` convolutions, or ``patches`` of 4x4 and then 2x2.
        downsample_norm: Type of the norm of stem and downsampling.
        downsample_act: Apply GELU after it. The published models have none.
    """

    block_types: PerStage[BlockTypes]
    formulation: Literal['v2022', 'v2023']
    num_groups: PerStage[Count] = 1
    strides: PerStage[Count] = 1
    offset_kernels: PerStage[Count] = 5
    offset_ranges: PerStage[float] = -1
    position_biases: PerStage[
        Literal['table', 'fixed', 'log_cpb', 'depthwise', 'none']
    ] = 'table'
    use_offsets: PerStage[bool] = True
    window_sizes: PerStage[Count] = 7
    neighborhood_sizes: PerStage[OddSize] = 7
    num_points: PerStage[Count] = 16
    mlp_kernels: PerStage[KernelSize] = 0
    pos_kernels: PerStage[KernelSize] = 0
    layer_scales: PerStage[float | None] = None
    stem_channels: Annotated[int, at_least(2)] | None = None
    downsampling: Downsampling = 'patches'
    downsample_norm: Norm = 'layer'
    downsample_act: bool = False


_DAT = dict(
    formulation='v2022',
    block_types=('LS', 'LS', 'LD', 'LD'),
    offset_kernels=(9, 7, 5, 3),
    offset_ranges=2,
)
_DAT_TINY = dict(
    _DAT,
    embed_dims=(96, 192, 384, 768),
    num_heads=(3, 6, 12, 24),
    num_groups=(1, 1, 3, 6),
)
_DAT_BASE = dict(
    _DAT,
    embed_dims=(128, 256, 512, 1024),
    depths=(2, 2, 18, 2),
    num_heads=(4, 8, 16, 32),
    num_groups=(1, 1, 4, 8),
)
_DATPP = dict(
    formulation='v2023',
    mlp_kernels=3,
    pos_kernels=3,
    downsampling='overlapping',
)
_DATPP_PUBLISHED = dict(
    _DATPP,
    depths=(2, 4, 18, 2),
    block_types=('ND', 'ND', 'ND', 'DD'),
    strides=(8, 4, 2, 1),
    offset_kernels=(9, 7, 5, 3),
)


@MODELS.register_module()
class DAT(StagedBackbone):
    """DAT (``tiny``, ``small``, ``base``) and DAT++ (``pp-...``) as a backbone.

    Papers: `Vision Transformer with Deformable Attention
    <https://arxiv.org/abs/2201.00520>`_ and `DAT++
    <https://arxiv.org/abs/2309.01430>`_. Any height and width of at least the stride of
    the last stage works: windows are padded, and position bias tables interpolated.

    Args:
        arch: Name of an entry of ``arch_settings``, or the settings of a
            :class:`DATArch`, or a dict with such a name under ``base`` and the settings
            that differ.
        out_indices: Stages to return, counted from 0, negative ones from the end; each
            once, in ascending order.
        out_norm: Norm of the outputs: ``class`` as before the classifier, or ``layer``
            as for dense tasks. They differ in name only, so that weights of one are not
            loaded into the other.
        drop_path_rate: Drop path rate of the last block; grows linearly from 0.
        frozen_stages: Number of stages to freeze; 0 freezes the stem alone, -1 nothing.
        norm_eval: Keep BatchNorm layers in eval mode during training.
        with_cp: Use activation checkpointing in the blocks to save memory.
        in_channels: Channels of the images; weights of RGB images are adapted to them
            when they are loaded.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``. The released models start from
            torch's default initialization of every layer, and so does this one.
        pretrained: Deprecated by OpenMMLab: the checkpoint of such an ``init_cfg``.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another.
    """

    family = 'dat'
    official_keys = r'stages\.\d+\.attns\.\d+\.'
    crop_mode = 'squash'  # to a square, then cropped
    arch_type = DATArch
    default_init_cfg = ()
    arch_settings = {
        'nano': DATArch(
            **_DATPP,
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 1),
            block_types=('ND', 'ND', 'ND', 'D'),
            num_heads=(1, 2, 4, 8),
            num_groups=(1, 1, 2, 4),
            strides=(4, 2, 1, 1),
            offset_kernels=(5, 3, 3, 3),
            neighborhood_sizes=(5, 5, 3, 3),
            mlp_ratios=3,
            img_size=128,
            downsample_norm='batch',
            downsample_act=True,
        ),
        'tiny': DATArch(**_DAT_TINY, depths=(2, 2, 6, 2)),
        'small': DATArch(**_DAT_TINY, depths=(2, 2, 18, 2)),
        'base': DATArch(**_DAT_BASE),
        'base-384': DATArch(**_DAT_BASE, window_sizes=12, img_size=384),
        'pp-tiny': DATArch(
            **_DATPP_PUBLISHED,
            embed_dims=(64, 128, 256, 512),
            num_heads=(2, 4, 8, 16),
            num_groups=(1, 2, 4, 8),
        ),
        'pp-small': DATArch(
            **_DATPP_PUBLISHED,
            embed_dims=(96, 192, 384, 768),
            num_heads=(3, 6, 12, 24),
            num_groups=(1, 2, 3, 6),
        ),
        'pp-base': DATArch(
            **_DATPP_PUBLISHED,
            embed_dims=(128, 256, 512, 1024),
            num_heads=(4, 8, 16, 32),
            num_groups=(2, 4, 8, 16),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] | DATArch = 'pp-tiny',
        out_indices: Sequence[int] = (3,),
        out_norm: str = 'class',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(
            arch,
            out_indices,
            out_norm,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
            in_channels,
            pretrained,
        )
        check_choice('out_norm', out_norm, OUT_NORMS)
        arch = self.arch
        rates = drop_path_rates(drop_path_rate, arch.depths)
        for i in range(self.num_stages):
            with stage_errors(i):
                self.add_stage(
                    _build_downsample(arch, i, in_channels),
                    _build_stage(arch, i, rates[i]),
                )
        self.add_out_norms(partial(LayerNorm2d, eps=EPS))
        self.freeze()

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay.

        As in the authors' training code for all tasks: those of norms, and the relative
        position biases of window and deformable attention. The tables of neighborhood
        attention are decayed.
        """
        types = (WindowAttention2d, DeformableAttention2d)
        return super().no_weight_decay() | {
            f'{module_name}.{name}'
            for module_name, module in self.named_modules()
            if isinstance(module, types)
            for name, _ in module.named_parameters()
            if name.startswith(POSITION_BIASES)
        }


def _build_stage(arch: DATArch, i: int, rates: Sequence[float]) -> Stage:
    block_types = islice(cycle(arch.block_types[i]), arch.depths[i])
    blocks = (
        TransformerBlock2d(
            _build_attention(arch, i, block_type),
            arch.embed_dims[i],
            mlp_ratio=arch.mlp_ratios[i],
            mlp_kernel=arch.mlp_kernels[i],
            mlp_residual=arch.formulation == 'v2023',
            pos_kernel=arch.pos_kernels[i],
            layer_scale=arch.layer_scales[i],
            norm_eps=EPS,
            drop_path=rate,
        )
        for block_type, rate in zip(block_types, rates, strict=True)
    )
    return Stage(*blocks)


def _build_attention(arch: DATArch, i: int, block_type: str) -> nn.Module:
    channels, num_heads = arch.embed_dims[i], arch.num_heads[i]
    if block_type in 'LS':
        window_size = arch.window_sizes[i]
        # Swin shifts by the floor of half a window, DAT by its ceiling.
        shift = -(-window_size // 2) if block_type == 'S' else 0
        shift %= window_size  # no shift for windows of size 1
        return WindowAttention2d(channels, num_heads, window_size, shift)
    if block_type == 'N':
        return NeighborhoodAttention2d(channels, num_heads, arch.neighborhood_sizes[i])
    if block_type == 'M':
        return MultiScaleDeformableAttention2d(channels, num_heads, arch.num_points[i])
    return DeformableAttention2d(
        channels,
        num_heads,
        num_groups=arch.num_groups[i],
        stride=arch.strides[i],
        offset_kernel=arch.offset_kernels[i],
        offset_range=arch.offset_ranges[i],
        formulation=arch.formulation,
        bias=arch.position_biases[i],
        map_size=arch.map_size(i),
        use_offsets=arch.use_offsets[i],
    )


def _build_downsample(arch: DATArch, i: int, in_channels: int) -> nn.Sequential:
    if i == 0:
        downsample = _stem(arch, in_channels)
    else:
        before, after = arch.embed_dims[i - 1 : i + 1]
        kernel_size = 3 if arch.downsampling == 'overlapping' else 2
        downsample = _conv_norm(
            before, after, arch.downsample_norm, kernel_size, stride=2, bias=False
        )
    if arch.downsample_act:
        downsample.append(nn.GELU())
    return downsample


def _stem(arch: DATArch, in_channels: int) -> nn.Sequential:
    width, norm = arch.embed_dims[0], arch.downsample_norm
    channels = arch.stem_channels if arch.stem_channels is not None else width
    if arch.downsampling == 'patches':
        stem = _conv_norm(in_channels, channels, norm, kernel_size=4, stride=4)
    elif arch.formulation == 'v2022':
        stem = _conv_norm(in_channels, channels, norm, kernel_size=7, stride=4)
    else:
        stem = nn.Sequential(
            *_conv_norm(in_channels, channels // 2, norm, kernel_size=3, stride=2),
            nn.GELU(),
            *_conv_norm(channels // 2, channels, norm, kernel_size=3, stride=2),
        )
    if channels != width:
        stem.add_module('proj', nn.Conv2d(channels, width, kernel_size=1))
    return stem


def _conv_norm(
    in_channels: int,
    out_channels: int,
    norm: str,
    kernel_size: int,
    stride: int,
    bias: bool = True,
) -> nn.Sequential:
    # Odd kernels overlap and are padded; even ones are as large as their stride.
    padding = kernel_size // 2 if kernel_size % 2 else 0
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias),
        NORMS[norm](out_channels, EPS),
    )
