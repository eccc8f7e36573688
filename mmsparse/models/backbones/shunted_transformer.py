"""Shunted Transformer: stages whose heads attend to keys of two resolutions."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import nn

from mmsparse.models.backbones.arch import (
    Arch,
    KernelSize,
    Norm,
    PerStage,
    at_least,
)
from mmsparse.models.backbones.base import (
    Stage,
    StagedBackbone,
    drop_path_rates,
    stage_errors,
)
from mmsparse.models.layers import ShuntedSelfAttention
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.norm import NORMS, LayerNorm2d
from mmsparse.registry import MODELS


@dataclass(frozen=True, kw_only=True)
class ShuntedArch(Arch):
    """Settings of a Shunted Transformer, in addition to those of :class:`Arch`.

    Args:
        sr_ratios: Reduction of the coarse keys and values; 1 for full attention.
        aggregation: How the tokens of a patch become one key: ``conv``, ``avg`` or
            ``max``, see :class:`ShuntedSelfAttention`.
        stem: ``convs``, or ``patches`` of 4x4 that do not overlap, as in ViT.
        stem_convs: Number of 3x3 convolutions in a stem of ``convs``.
        qkv_bias: Whether queries, keys and values have a bias.
        mlp_kernels: Kernel size of the depthwise convolution in the MLP (the paper's
            detail-specific feed-forward layer), 0 for none.
        mlp_residual: Whether that convolution has a residual connection.
        downsample_norm: Type of the norm at the end of stem and downsampling.
        downsample_act: Apply GELU after it. The published models have none.
    """

    sr_ratios: PerStage[Literal[1, 2, 4, 8]]
    aggregation: Literal['conv', 'avg', 'max'] = 'conv'
    stem: Literal['convs', 'patches'] = 'convs'
    stem_convs: Annotated[int, at_least(0)] = 0
    qkv_bias: bool = True
    mlp_kernels: PerStage[KernelSize] = 3
    mlp_residual: bool = True
    downsample_norm: Norm = 'layer'
    downsample_act: bool = False


_PUBLISHED = dict(
    embed_dims=(64, 128, 256, 512),
    num_heads=(2, 4, 8, 16),
    mlp_ratios=(8, 8, 4, 4),
    sr_ratios=(8, 4, 2, 1),
)


@MODELS.register_module()
class ShuntedTransformer(StagedBackbone):
    """Shunted Transformer as a backbone for classification and dense tasks.

    Paper: `Shunted Self-Attention via Multi-Scale Token Aggregation
    <https://arxiv.org/abs/2111.15193>`_. Every stage ends with a norm, and its output
    is the input of the next stage and of a head. Any height and width of at least 31
    pixels works, the minimum for the ``sr_ratios`` of the published models.

    Args:
        arch: Name of an entry of ``arch_settings``, or the settings of a
            :class:`ShuntedArch`, or a dict with such a name under ``base`` and the
            settings that differ.
        out_indices: Stages to return, counted from 0, negative ones from the end; each
            once, in ascending order.
        drop_path_rate: Drop path rate of the last block; grows linearly from 0.
        frozen_stages: Number of stages to freeze; 0 freezes the stem alone, -1 nothing.
        norm_eval: Keep BatchNorm layers, which the stem has, in eval mode during
            training.
        with_cp: Use activation checkpointing in the blocks to save memory.
        in_channels: Channels of the images; weights of RGB images are adapted to them
            when they are loaded.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``.
        pretrained: Deprecated by OpenMMLab: the checkpoint of such an ``init_cfg``.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another, or an
            image is too small.
    """

    family = 'shunted'
    official_keys = r'block\d+\.\d+\.attn\.(sr1|kv1|local_conv)\.'
    arch_type = ShuntedArch
    arch_settings = {
        'nano': ShuntedArch(
            embed_dims=(32, 64, 128, 256),
            depths=(1, 2, 2, 1),
            num_heads=(2, 2, 4, 8),
            mlp_ratios=(4, 4, 3, 3),
            sr_ratios=(8, 4, 2, 1),
            stem_convs=2,
            downsample_norm='batch',
            downsample_act=True,
        ),
        'tiny': ShuntedArch(**_PUBLISHED, depths=(1, 2, 4, 1)),
        'small': ShuntedArch(**_PUBLISHED, depths=(2, 4, 12, 1), stem_convs=1),
        'base': ShuntedArch(**_PUBLISHED, depths=(3, 4, 24, 2), stem_convs=2),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] | ShuntedArch = 'tiny',
        out_indices: Sequence[int] = (3,),
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
            None,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
            in_channels,
            pretrained,
        )
        rates = drop_path_rates(drop_path_rate, self.arch.depths)
        for i in range(self.num_stages):
            with stage_errors(i):
                self.add_stage(
                    _build_downsample(self.arch, i, in_channels),
                    _build_stage(self.arch, i, rates[i]),
                )
        self.freeze()

    def init_weights(self) -> None:
        """Initialize convolutions by their fan-out per group, the rest by init_cfg."""
        if not self.is_init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    _init_conv(module)
        super().init_weights()

    @property
    def min_side(self) -> int:
        """Minimum side of an image in pixels; every reduction leaves at least a key."""
        grids = [
            (sr_ratio - 1) * 2**stage + 1
            for stage, sr_ratio in enumerate(self.arch.sr_ratios[: self.num_stages])
        ]
        # A stem of convolutions rounds up at first, then down; patches round down.
        return 4 * max(grids) - (self.arch.stem == 'convs')


def _build_downsample(arch: ShuntedArch, i: int, in_channels: int) -> nn.Sequential:
    widths, norm = arch.embed_dims, arch.downsample_norm
    if i:
        downsample = patch_embedding(widths[i - 1], widths[i], norm=norm)
    elif arch.stem == 'convs':
        downsample = stem(widths[0], arch.stem_convs, norm, in_channels)
    else:
        downsample = patches(widths[0], norm, in_channels)
    if arch.downsample_act:
        downsample.append(nn.GELU())
    return downsample


def _build_stage(arch: ShuntedArch, i: int, rates: Sequence[float]) -> Stage:
    channels = arch.embed_dims[i]
    blocks = (
        TransformerBlock2d(
            ShuntedSelfAttention(
                channels,
                arch.num_heads[i],
                arch.sr_ratios[i],
                arch.qkv_bias,
                arch.aggregation,
            ),
            channels,
            mlp_ratio=arch.mlp_ratios[i],
            mlp_kernel=arch.mlp_kernels[i],
            mlp_residual=arch.mlp_residual,
            drop_path=rate,
        )
        for rate in rates
    )
    stage = Stage(*blocks)
    stage.add_module('norm', LayerNorm2d(channels))
    return stage


def stem(
    channels: int, num_convs: int = 0, norm: str = 'layer', in_channels: int = 3
) -> nn.Sequential:
    """Build the stem: convolutions with a total stride of 4, and a norm.

    Args:
        channels: C of the feature map.
        num_convs: Number of 3x3 convolutions between the two with stride 2.
        norm: ``batch`` or ``layer``.
        in_channels: Channels of the images.

    Returns:
        (B, in_channels, H, W) to (B, C, H / 4, W / 4), the size rounded up, then down.
    """
    layers: list[nn.Module] = []
    for i in range(num_convs + 1):
        conv = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
            if i
            else nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
        )
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(channels, channels, kernel_size=2, stride=2))
    # The norm is named, so that no other key depends on the number of convolutions.
    return nn.Sequential(
        OrderedDict(conv=nn.Sequential(*layers), norm=NORMS[norm](channels, eps=1e-5))
    )


def patches(channels: int, norm: str, in_channels: int) -> nn.Sequential:
    """Build a stem of patches that do not overlap: one convolution, and a norm.

    Args:
        channels: C of the feature map.
        norm: ``batch`` or ``layer``.
        in_channels: Channels of the images.

    Returns:
        (B, in_channels, H, W) to (B, C, H / 4, W / 4), the size rounded down.
    """
    conv = nn.Conv2d(in_channels, channels, kernel_size=4, stride=4)
    return nn.Sequential(OrderedDict(conv=conv, norm=NORMS[norm](channels, eps=1e-5)))


def patch_embedding(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 2,
    norm: str = 'layer',
) -> nn.Sequential:
    """Build a downsampling: a convolution over overlapping patches, and a norm.

    Args:
        in_channels: C of the input.
        out_channels: C of the output.
        kernel_size: Size of the patches.
        stride: Stride of the patches.
        norm: ``batch`` or ``layer``.

    Returns:
        (B, C, H, W) to (B, C', H / stride, W / stride), rounded up for odd kernels.
    """
    padding = kernel_size // 2
    return nn.Sequential(
        OrderedDict(
            proj=nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding),
            norm=NORMS[norm](out_channels, eps=1e-5),
        )
    )


def _init_conv(conv: nn.Conv2d) -> None:
    height, width = conv.kernel_size
    fan_out = height * width * conv.out_channels // conv.groups
    nn.init.normal_(conv.weight, std=(2 / fan_out) ** 0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
