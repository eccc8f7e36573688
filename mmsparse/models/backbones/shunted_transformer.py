"""Shunted Transformer: stages whose heads see keys of two resolutions."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmsparse.models.backbones.arch import (
    FLAG,
    INTEGER,
    POSITIVE,
    Setting,
    integer,
    one_of,
    resolve_arch,
)
from mmsparse.models.backbones.base import StagedBackbone, drop_path_rates
from mmsparse.models.layers import (
    DetailMlp2d,
    DropPath,
    LayerNorm2d,
    Mlp2d,
    ShuntedSelfAttention,
)
from mmsparse.models.layers.common import NORMS, check_heads
from mmsparse.models.layers.shunted_attention import check_sr_ratio
from mmsparse.registry import MODELS

_SETTINGS = dict(
    embed_dims=Setting(integer(2)),
    depths=Setting(integer(1)),
    num_heads=Setting(integer(1)),
    mlp_ratios=Setting(POSITIVE),
    sr_ratios=Setting(INTEGER),
    stem_convs=Setting(integer(0), 0),
    qkv_bias=Setting(FLAG, True),
    mlp_detail=Setting(FLAG, True),
    downsample_norm=Setting(one_of(NORMS), 'layer'),
    downsample_act=Setting(FLAG, False),
)


@MODELS.register_module()
class ShuntedTransformer(StagedBackbone):
    """Shunted Transformer as a backbone for classification and dense tasks.

    Paper: `Shunted Self-Attention via Multi-Scale Token Aggregation
    <https://arxiv.org/abs/2111.15193>`_. Every stage ends with a norm, and its output
    is what the next stage and a head get. Any height and width works from 31 pixels on,
    the least that the published reductions of keys need.

    An architecture has, per stage, ``embed_dims``, ``depths``, ``num_heads``,
    ``mlp_ratios`` and ``sr_ratios`` (reduction of the coarse keys: 8, 4, 2, or 1 for
    full attention); and for all stages ``stem_convs``, the number of 3x3 convolutions
    within the stem, ``qkv_bias``, ``mlp_detail``, the depthwise convolution in the MLP,
    and ``downsample_norm`` (``batch`` or ``layer``) and ``downsample_act``: the norm at
    the end of stem and downsampling, and whether GELU follows. The published models
    have the norm of layers and no GELU; ``nano`` has that of batches and GELU.

    Args:
        arch: Name of an entry of ``arch_settings``, or such an entry, or a dict with
            the name of one under ``base`` and the settings that differ.
        out_indices: Stages to return, counted from 0.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        frozen_stages: Stages without training, from the first on; 0 for the stem alone
            and -1 for none.
        norm_eval: Keep BatchNorm layers, which the stem has, in eval mode while
            training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another, or a
            picture is too small.
    """

    arch_settings: Mapping[str, Mapping[str, Any]] = {
        'nano': dict(
            embed_dims=(32, 64, 128, 256),
            depths=(1, 2, 2, 1),
            num_heads=(2, 2, 4, 8),
            mlp_ratios=(4, 4, 3, 3),
            sr_ratios=(8, 4, 2, 1),
            stem_convs=2,
            downsample_norm='batch',
            downsample_act=True,
        ),
        'tiny': dict(
            embed_dims=(64, 128, 256, 512),
            depths=(1, 2, 4, 1),
            num_heads=(2, 4, 8, 16),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
        ),
        'small': dict(
            embed_dims=(64, 128, 256, 512),
            depths=(2, 4, 12, 1),
            num_heads=(2, 4, 8, 16),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
            stem_convs=1,
        ),
        'base': dict(
            embed_dims=(64, 128, 256, 512),
            depths=(3, 4, 24, 2),
            num_heads=(2, 4, 8, 16),
            mlp_ratios=(8, 8, 4, 4),
            sr_ratios=(8, 4, 2, 1),
            stem_convs=2,
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        out_indices: Sequence[int] = (3,),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.arch_settings, _SETTINGS)
        _check(arch)
        rates = drop_path_rates(drop_path_rate, arch['depths'])
        super().__init__(
            arch['embed_dims'],
            out_indices,
            None,
            frozen_stages,
            norm_eval,
            with_cp,
            init_cfg,
        )
        num_stages = max(out_indices) + 1  # later stages would serve nothing
        self.sr_ratios = arch['sr_ratios'][:num_stages]
        self.downsamples = nn.ModuleList(
            _build_downsample(arch, i) for i in range(num_stages)
        )
        self.stages = nn.ModuleList(
            _build_stage(arch, i, rates[i]) for i in range(num_stages)
        )
        self.freeze()

    def init_weights(self) -> None:
        """Draw convolutions by their fan-out within a group, the rest by init_cfg."""
        if not self.is_init:
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    _init_conv(module)
        super().init_weights()

    @property
    def min_side(self) -> int:
        """Shortest side of a picture, of which every reduction leaves some keys."""
        grids = [
            (sr_ratio - 1) * 2**stage + 1
            for stage, sr_ratio in enumerate(self.sr_ratios)
        ]
        return 4 * max(grids) - 1  # the stem rounds up at first, then down


class ShuntedBlock(nn.Module):
    """Attention at two scales and an MLP, each with a residual around it.

    Args:
        channels: C of the map.
        num_heads: Number of heads.
        mlp_ratio: Hidden width of the MLP over C.
        sr_ratio: Reduction of the coarse keys and values.
        qkv_bias: Whether queries, keys and values have a bias.
        mlp_detail: Whether the MLP has a depthwise convolution.
        drop_path: Probability of dropping attention or MLP for a sample.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        qkv_bias: bool = True,
        mlp_detail: bool = True,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm2d(channels)
        self.attn = ShuntedSelfAttention(channels, num_heads, sr_ratio, qkv_bias)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = (
            DetailMlp2d(channels, int(mlp_ratio * channels))
            if mlp_detail
            else Mlp2d(channels, mlp_ratio)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _build_downsample(arch: Mapping[str, Any], i: int) -> nn.Sequential:
    widths, norm = arch['embed_dims'], arch['downsample_norm']
    downsample = (
        patch_embedding(widths[i - 1], widths[i], norm=norm)
        if i
        else stem(widths[0], arch['stem_convs'], norm)
    )
    if arch['downsample_act']:
        downsample.append(nn.GELU())
    return downsample


def _build_stage(
    arch: Mapping[str, Any], i: int, rates: Sequence[float]
) -> nn.Sequential:
    blocks = (
        ShuntedBlock(
            arch['embed_dims'][i],
            num_heads=arch['num_heads'][i],
            mlp_ratio=arch['mlp_ratios'][i],
            sr_ratio=arch['sr_ratios'][i],
            qkv_bias=arch['qkv_bias'],
            mlp_detail=arch['mlp_detail'],
            drop_path=rate,
        )
        for rate in rates
    )
    stage = nn.Sequential(*blocks)
    stage.add_module('norm', LayerNorm2d(arch['embed_dims'][i]))
    return stage


def stem(channels: int, num_convs: int = 0, norm: str = 'layer') -> nn.Sequential:
    """Convolutions that take a picture to a quarter of its size, and a norm.

    Args:
        channels: C of the map.
        num_convs: Number of 3x3 convolutions between the two that reduce.
        norm: ``batch`` or ``layer``.

    Returns:
        (B, 3, H, W) to (B, C, H / 4, W / 4), the size rounded up, then down.
    """
    layers: list[nn.Module] = []
    for i in range(num_convs + 1):
        conv = (
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
            if i
            else nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        )
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(channels, channels, kernel_size=2, stride=2))
    # An own name for the norm: then no other key depends on the number of convolutions.
    return nn.Sequential(
        OrderedDict(conv=nn.Sequential(*layers), norm=NORMS[norm](channels, eps=1e-5))
    )


def patch_embedding(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 2,
    norm: str = 'layer',
) -> nn.Sequential:
    """A convolution over overlapping patches, and a norm.

    Args:
        in_channels: C of the map before.
        out_channels: C of the map after.
        kernel_size: Edge length of the patches.
        stride: Distance of the patches.
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


def _check(arch: Mapping[str, Any]) -> None:
    stages = zip(arch['embed_dims'], arch['num_heads'], arch['sr_ratios'], strict=True)
    for i, (channels, num_heads, sr_ratio) in enumerate(stages):
        check_heads(channels, num_heads, name=f'embed_dims[{i}]')
        check_sr_ratio(sr_ratio, num_heads, name=f'sr_ratios[{i}]')
