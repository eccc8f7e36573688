"""BiFormer: stages of bi-level routing attention, the last with full attention."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn

from mmsparse.models.backbones.base import (
    StagedBackbone,
    drop_path_rates,
    resolve_arch,
)
from mmsparse.models.layers import (
    BiLevelRoutingAttention,
    ConvMixer2d,
    FullAttention2d,
    LayerNorm2d,
    Mlp2d,
    depthwise_conv,
)
from mmsparse.models.layers.biformer_attention import check_heads, check_regions
from mmsparse.registry import MODELS

OUT_NORMS = {'batch': nn.BatchNorm2d, 'layer': LayerNorm2d}


@MODELS.register_module()
class BiFormer(StagedBackbone):
    """BiFormer as a backbone for classification and dense tasks.

    Paper: `BiFormer: Vision Transformer with Bi-Level Routing Attention
    <https://arxiv.org/abs/2303.08810>`_. Any height and width works.

    An architecture has, per stage, ``embed_dims``, ``depths``, ``num_heads``,
    ``mlp_ratios`` and ``topks``: the number of regions that each region attends to,
    ``'all'`` for full attention, 0 for convolutions in place of attention; and for all
    stages ``local_kernel`` (depthwise convolution beside the attention) and
    ``pos_kernel`` (depthwise convolution before it), 0 for none, and
    ``downsample_act``: GELU after every downsampling, without which few blocks on small
    data learn slowly. The published models have none.

    Args:
        arch: Name of an entry of ``arch_settings``, or such an entry.
        regions_per_side: Regions down and across the map of every routed stage. The
            published models use 7 for classification at 224x224, 16 for detection, 8
            for segmentation; the weights do not depend on it.
        out_indices: Stages to return, counted from 0.
        out_norm: Norm of the returned maps: ``batch`` as before the classifier, or
            ``layer`` as for dense tasks.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        frozen_stages: Stages without training, from the first on; 0 for the stem alone
            and -1 for none.
        norm_eval: Keep BatchNorm layers in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialisation, for example
            ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: An argument is unknown, out of range or does not fit another.
    """

    arch_settings: Mapping[str, Mapping[str, Any]] = {
        'nano': dict(
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 1),
            num_heads=(1, 2, 4, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(3, 3, 3, 3),
            downsample_act=True,
        ),
        'tiny': dict(
            embed_dims=(64, 128, 256, 512),
            depths=(2, 2, 8, 2),
            num_heads=(2, 4, 8, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(3, 3, 3, 3),
        ),
        'small': dict(
            embed_dims=(64, 128, 256, 512),
            depths=(4, 4, 18, 4),
            num_heads=(2, 4, 8, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(3, 3, 3, 3),
        ),
        'base': dict(
            embed_dims=(96, 192, 384, 768),
            depths=(4, 4, 18, 4),
            num_heads=(3, 6, 12, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(3, 3, 3, 3),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        regions_per_side: int = 7,
        out_indices: Sequence[int] = (3,),
        out_norm: str = 'batch',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = resolve_arch(
            arch,
            known=self.arch_settings,
            per_stage=('embed_dims', 'depths', 'num_heads', 'topks', 'mlp_ratios'),
            optional=dict(local_kernel=5, pos_kernel=3, downsample_act=False),
        )
        _check(arch, regions_per_side, out_norm)
        widths = arch['embed_dims']
        rates = drop_path_rates(drop_path_rate, arch['depths'])
        super().__init__(
            len(widths),
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
            downsample = (
                _downsample(widths[i - 1], widths[i]) if i else _stem(widths[0])
            )
            if arch['downsample_act']:
                downsample.append(nn.GELU())
            self.downsamples.append(downsample)
            blocks = (
                BiFormerBlock(
                    attn=_build_attention(arch, i, regions_per_side),
                    channels=widths[i],
                    mlp_ratio=arch['mlp_ratios'][i],
                    pos_kernel=arch['pos_kernel'],
                    drop_path=rate,
                )
                for rate in rates[i]
            )
            self.stages.append(nn.Sequential(*blocks))
        self.out_norms = nn.ModuleDict(
            {f'{out_norm}{i}': OUT_NORMS[out_norm](widths[i]) for i in out_indices}
        )
        self.freeze()


class BiFormerBlock(nn.Module):
    """Position convolution, attention and MLP, each with a residual around it.

    Args:
        attn: The attention layer.
        channels: C of the map.
        mlp_ratio: Hidden width of the MLP over C.
        pos_kernel: Odd edge length of the position convolution, 0 for none.
        drop_path: Probability of dropping attention or MLP for a sample.
    """

    def __init__(
        self,
        attn: nn.Module,
        channels: int,
        mlp_ratio: float,
        pos_kernel: int = 3,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos_conv = depthwise_conv(channels, pos_kernel) if pos_kernel else None
        self.norm1 = LayerNorm2d(channels)
        self.attn = attn
        self.norm2 = LayerNorm2d(channels)
        self.mlp = Mlp2d(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.pos_conv is not None:
            x = x + self.pos_conv(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _build_attention(
    arch: Mapping[str, Any], stage: int, regions_per_side: int
) -> nn.Module:
    channels, topk = arch['embed_dims'][stage], arch['topks'][stage]
    if topk == 0:
        return ConvMixer2d(channels)
    common = dict(num_heads=arch['num_heads'][stage], local_kernel=arch['local_kernel'])
    if topk == 'all':
        return FullAttention2d(channels, **common)
    return BiLevelRoutingAttention(
        channels, topk=topk, regions_per_side=regions_per_side, **common
    )


def _stem(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *_downsample(3, channels // 2), nn.GELU(), *_downsample(channels // 2, channels)
    )


def _downsample(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1),
        nn.BatchNorm2d(out_channels),
    )


def _check(arch: Mapping[str, Any], regions_per_side: int, out_norm: str) -> None:
    for i, (channels, num_heads, topk) in enumerate(
        zip(arch['embed_dims'], arch['num_heads'], arch['topks'], strict=True)
    ):
        if topk == 0:
            continue
        check_heads(channels, num_heads, name=f'embed_dims[{i}]')
        if topk != 'all':
            check_regions(regions_per_side, topk)
    if out_norm not in OUT_NORMS:
        raise ValueError(
            f'out_norm must be one of {sorted(OUT_NORMS)}; got {out_norm!r}.'
        )
