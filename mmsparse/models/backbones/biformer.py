"""BiFormer: stages of bi-level routing attention, the last with full attention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from mmsparse.models.backbones.arch import (
    Arch,
    Count,
    Downsampling,
    KernelSize,
    Norm,
    PerStage,
    check_setting,
    expand,
)
from mmsparse.models.backbones.base import (
    Stage,
    StagedBackbone,
    drop_path_rates,
    stage_errors,
)
from mmsparse.models.layers.bilevel_routing_attention import BiLevelRoutingAttention
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.common import DepthwiseConv2d, check_choice
from mmsparse.models.layers.full_attention import FullAttention2d
from mmsparse.models.layers.norm import NORMS
from mmsparse.registry import MODELS


@dataclass(frozen=True, kw_only=True)
class BiFormerArch(Arch):
    """Settings of a BiFormer, in addition to those of :class:`Arch`.

    Args:
        block_types: ``routing`` for bi-level routing attention, ``full`` for attention
            to all positions, ``conv`` for a convolution in place of attention.
        topks: Number of regions that each region attends to, in ``routing`` stages.
        attn_cfgs: Further arguments of the attention layers.
        pos_kernels: Kernel size of a depthwise convolution before the attention, 0 for
            none.
        mlp_kernels: Kernel size of a depthwise convolution in the MLP, 0 for none.
        layer_scales: Initial value of LayerScale, None for no LayerScale.
        post_norm: Normalize after the residual connections instead of before attention
            and MLP.
        downsampling: ``overlapping`` convolutions, each followed by a norm, or
            ``patches`` of 4x4 and then 2x2, the norm before all but the first (the
            layout of Swin).
        downsample_norm: Type of these norms.
        downsample_act: Apply GELU after every downsampling. The published models have
            none.
    """

    block_types: PerStage[Literal['routing', 'full', 'conv']]
    topks: PerStage[Count | None] = None
    attn_cfgs: PerStage[Mapping[str, Any] | None] = None
    pos_kernels: PerStage[KernelSize] = 3
    mlp_kernels: PerStage[KernelSize] = 0
    layer_scales: PerStage[float | None] = None
    post_norm: bool = False
    downsampling: Downsampling = 'overlapping'
    downsample_norm: Norm = 'batch'
    downsample_act: bool = False


_PUBLISHED = dict(
    block_types=('routing', 'routing', 'routing', 'full'), topks=(1, 4, 16, None)
)
_BIFORMER = dict(
    _PUBLISHED,
    embed_dims=(64, 128, 256, 512),
    num_heads=(2, 4, 8, 8),
    mlp_ratios=3,
)
_SMALLEST = dict(
    _PUBLISHED,
    embed_dims=(32, 64, 128, 256),
    num_heads=(1, 2, 4, 8),
    mlp_ratios=3,
    downsample_act=True,
)
_STL = dict(
    _PUBLISHED,
    embed_dims=(96, 192, 384, 768),
    depths=(2, 2, 6, 2),
    num_heads=(3, 6, 12, 8),
    pos_kernels=0,
    downsampling='patches',
)


@MODELS.register_module()
class BiFormer(StagedBackbone):
    """BiFormer as a backbone for classification and dense tasks.

    Paper: `BiFormer: Vision Transformer with Bi-Level Routing Attention
    <https://arxiv.org/abs/2303.08810>`_. Any height and width works.

    The two ``stl`` models (Swin-Tiny's layout) have weights of equal shapes, but differ
    in the padding of the regions and in the local term of the last stage.

    Args:
        arch: Name of an entry of ``arch_settings``, or the settings of a
            :class:`BiFormerArch`, or a dict with such a name under ``base`` and the
            settings that differ.
        regions_per_side: Number of regions per side of the feature map, one value for
            all routing stages or one per stage. The published models use 7 for
            classification at 224x224, 16 for detection, 8 for segmentation; the weights
            do not depend on it.
        out_indices: Stages to return, counted from 0, negative ones from the end; each
            once, in ascending order.
        out_norm: Norm of the outputs: ``batch`` as before the classifier, or ``layer``
            as for dense tasks.
        drop_path_rate: Drop path rate of the last block; grows linearly from 0.
        frozen_stages: Number of stages to freeze; 0 freezes the stem alone, -1 nothing.
        norm_eval: Keep BatchNorm layers in eval mode during training.
        with_cp: Use activation checkpointing in the blocks to save memory.
        in_channels: Channels of the images; weights of RGB images are adapted to them
            when they are loaded.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``.
        pretrained: Deprecated by OpenMMLab: the checkpoint of such an ``init_cfg``.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another.
    """

    family = 'biformer'
    official_keys = r'stages\.\d+\.(blocks\.)?\d+\.attn\.(lepe|qkv\.qkv|qkv_linear)\.'
    arch_type = BiFormerArch
    arch_settings = {
        'pico': BiFormerArch(**_SMALLEST, depths=(1, 1, 1, 1), mlp_kernels=3),
        'nano': BiFormerArch(**_SMALLEST, depths=(2, 2, 2, 1)),
        'tiny': BiFormerArch(**_BIFORMER, depths=(2, 2, 8, 2)),
        'small': BiFormerArch(**_BIFORMER, depths=(4, 4, 18, 4)),
        'base': BiFormerArch(
            **_PUBLISHED,
            embed_dims=(96, 192, 384, 768),
            depths=(4, 4, 18, 4),
            num_heads=(3, 6, 12, 8),
            mlp_ratios=3,
        ),
        'stl': BiFormerArch(**_STL),
        'stl-nchw': BiFormerArch(
            **_STL,
            attn_cfgs=(
                dict(padding='tokens'),
                dict(padding='tokens'),
                dict(padding='tokens'),
                dict(lepe_source='values'),
            ),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] | BiFormerArch = 'tiny',
        regions_per_side: int | Sequence[int] = 7,
        out_indices: Sequence[int] = (3,),
        out_norm: str = 'batch',
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
        check_choice('out_norm', out_norm, NORMS)
        arch = self.arch
        regions = _regions_per_stage(regions_per_side, arch.num_stages)
        rates = drop_path_rates(drop_path_rate, arch.depths)
        for i in range(self.num_stages):
            with stage_errors(i):
                self.add_stage(
                    _build_downsample(arch, i, in_channels),
                    _build_stage(arch, i, regions[i], rates[i]),
                )
        self.add_out_norms(NORMS[out_norm])
        self.freeze()


def _regions_per_stage(
    regions_per_side: int | Sequence[int], num_stages: int
) -> tuple[int, ...]:
    check_setting('regions_per_side', regions_per_side, PerStage[Count])
    regions = expand(regions_per_side, num_stages)
    if len(regions) != num_stages:
        raise ValueError(
            f'regions_per_side must be one value for all stages or one per stage, '
            f'{num_stages}; got {regions_per_side!r}.'
        )
    return regions


def _build_stage(
    arch: BiFormerArch, i: int, regions_per_side: int, rates: Sequence[float]
) -> Stage:
    blocks = (
        TransformerBlock2d(
            _build_attention(arch, i, regions_per_side),
            arch.embed_dims[i],
            mlp_ratio=arch.mlp_ratios[i],
            mlp_kernel=arch.mlp_kernels[i],
            pos_kernel=arch.pos_kernels[i],
            layer_scale=arch.layer_scales[i],
            post_norm=arch.post_norm,
            drop_path=rate,
        )
        for rate in rates
    )
    return Stage(*blocks)


def _build_attention(arch: BiFormerArch, i: int, regions_per_side: int) -> nn.Module:
    channels, num_heads, topk = arch.embed_dims[i], arch.num_heads[i], arch.topks[i]
    further = arch.attn_cfgs[i] or {}
    if arch.block_types[i] == 'conv':
        return ConvMixer2d(channels, **further)
    if arch.block_types[i] == 'full':
        return FullAttention2d(channels, num_heads, **further)
    if topk is None:
        raise ValueError('topks must be an integer for routing; got None.')
    return BiLevelRoutingAttention(
        channels, num_heads, topk, regions_per_side, **further
    )


def _build_downsample(arch: BiFormerArch, i: int, in_channels: int) -> nn.Sequential:
    before, after = (in_channels, *arch.embed_dims)[i : i + 2]
    norm = NORMS[arch.downsample_norm]
    if arch.downsampling == 'patches':
        layers = (
            [norm(before), nn.Conv2d(before, after, kernel_size=2, stride=2)]
            if i
            else [nn.Conv2d(before, after, kernel_size=4, stride=4), norm(after)]
        )
    elif i:
        layers = [_strided_conv(before, after), norm(after)]
    else:
        half = after // 2
        layers = [_strided_conv(before, half), norm(half), nn.GELU()]
        layers += [_strided_conv(half, after), norm(after)]
    if arch.downsample_act:
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


def _strided_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


class ConvMixer2d(nn.Sequential):
    """Convolutions in place of attention, for BiFormer's stages without routing.

    Args:
        channels: C of the feature map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, kernel_size=1),
            DepthwiseConv2d(channels, kernel_size=5),
            nn.Conv2d(channels, channels, kernel_size=1),
        )
