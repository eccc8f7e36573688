"""BiFormer: stages of bi-level routing attention, the last with full attention."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmsparse.models.backbones.arch import (
    FLAG,
    KERNEL,
    MAPPING,
    NUMBER,
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
    BiLevelRoutingAttention,
    ConvMixer2d,
    DepthwiseConv2d,
    DropPath,
    FullAttention2d,
    LayerNorm2d,
    LayerScale2d,
    Mlp2d,
)
from mmsparse.models.layers.bilevel_routing_attention import check_regions
from mmsparse.models.layers.common import NORMS, check_choice, check_heads
from mmsparse.registry import MODELS

DOWNSAMPLINGS = ('overlapping', 'patches')
_COUNT = integer(0)
_TOPK = Kind(f"'all' or {_COUNT.text}", lambda x: x == 'all' or _COUNT.accepts(x))
_SETTINGS = dict(
    embed_dims=Setting(integer(2)),
    depths=Setting(integer(1)),
    num_heads=Setting(integer(1)),
    topks=Setting(_TOPK),
    mlp_ratios=Setting(POSITIVE),
    attn_cfgs=Setting(MAPPING, None, by_stage=True),
    pos_kernel=Setting(KERNEL, 3),
    mlp_kernel=Setting(KERNEL, 0),
    layer_scale=Setting(optional(NUMBER), None),
    post_norm=Setting(FLAG, False),
    downsampling=Setting(one_of(DOWNSAMPLINGS), 'overlapping'),
    downsample_norm=Setting(one_of(NORMS), 'batch'),
    downsample_act=Setting(FLAG, False),
)


@MODELS.register_module()
class BiFormer(StagedBackbone):
    """BiFormer as a backbone for classification and dense tasks.

    Paper: `BiFormer: Vision Transformer with Bi-Level Routing Attention
    <https://arxiv.org/abs/2303.08810>`_. Any height and width works.

    An architecture has, per stage, ``embed_dims``, ``depths``, ``num_heads``,
    ``mlp_ratios`` and ``topks``: the number of regions that each region attends to,
    ``'all'`` for full attention, 0 for convolutions in place of attention. It may have

    - ``attn_cfgs``: further arguments of the attention layer of every stage,
      :class:`BiLevelRoutingAttention` or :class:`FullAttention2d`, a dict for all or
      one a stage;
    - ``pos_kernel``: edge length of a depthwise convolution before the attention,
      ``mlp_kernel``: of one inside the MLP; 0 for none;
    - ``layer_scale``: what a factor per channel on every branch starts from, None for
      no factors;
    - ``post_norm``: norms after the sums instead of before attention and MLP;
    - ``downsampling``: ``overlapping`` convolutions, each with a norm after it, or
      ``patches`` of 4x4 and then 2x2, the norm before all but the first (the layout of
      Swin); ``downsample_norm``: ``batch`` or ``layer``;
    - ``downsample_act``: GELU after every downsampling, as ``nano`` has it. The
      published models have none.

    The two ``stl`` models (Swin-Tiny's layout) have weights of equal shapes, but differ
    in the padding of the regions and in the local term of the last stage.

    Args:
        arch: Name of an entry of ``arch_settings``, or such an entry, or a dict with
            the name of one under ``base`` and the settings that differ.
        regions_per_side: Regions down and across the map of every routed stage, or one
            number a stage. The published models use 7 for classification at 224x224, 16
            for detection, 8 for segmentation; the weights do not depend on it.
        out_indices: Stages to return, counted from 0.
        out_norm: Norm of the returned maps: ``batch`` as before the classifier, or
            ``layer`` as for dense tasks.
        drop_path_rate: Stochastic depth of the last block; grows linearly from 0.
        frozen_stages: Stages without training, from the first on; 0 for the stem alone
            and -1 for none.
        norm_eval: Keep BatchNorm layers in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialization, for example
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
        'stl': dict(
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(4, 4, 4, 4),
            pos_kernel=0,
            downsampling='patches',
        ),
        'stl-nchw': dict(
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 8),
            topks=(1, 4, 16, 'all'),
            mlp_ratios=(4, 4, 4, 4),
            attn_cfgs=(
                dict(padding='tokens'),
                dict(padding='tokens'),
                dict(padding='tokens'),
                dict(lepe_source='values'),
            ),
            pos_kernel=0,
            downsampling='patches',
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] = 'tiny',
        regions_per_side: int | Sequence[int] = 7,
        out_indices: Sequence[int] = (3,),
        out_norm: str = 'batch',
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        arch = resolve_arch(arch, self.arch_settings, _SETTINGS)
        widths = arch['embed_dims']
        if not isinstance(arch['attn_cfgs'], tuple):
            arch['attn_cfgs'] = (arch['attn_cfgs'] or {},) * len(widths)
        if isinstance(regions_per_side, int):
            regions_per_side = (regions_per_side,) * len(widths)
        _check(arch, regions_per_side, out_norm)
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
            self.downsamples.append(_build_downsampling(arch, i))
            blocks = (
                BiFormerBlock(
                    attn=_build_attention(arch, i, regions_per_side[i]),
                    channels=widths[i],
                    mlp_ratio=arch['mlp_ratios'][i],
                    pos_kernel=arch['pos_kernel'],
                    mlp_kernel=arch['mlp_kernel'],
                    layer_scale=arch['layer_scale'],
                    post_norm=arch['post_norm'],
                    drop_path=rate,
                )
                for rate in rates[i]
            )
            self.stages.append(nn.Sequential(*blocks))
        self.out_norms = nn.ModuleDict(
            {f'{out_norm}{i}': NORMS[out_norm](widths[i]) for i in out_indices}
        )
        self.freeze()


class BiFormerBlock(nn.Module):
    """Position convolution, attention and MLP, each with a residual around it.

    Args:
        attn: The attention layer.
        channels: C of the map.
        mlp_ratio: Hidden width of the MLP over C.
        pos_kernel: Odd edge length of the position convolution, 0 for none.
        mlp_kernel: Odd edge length of the convolution inside the MLP, 0 for none.
        layer_scale: What the factors per channel on attention and MLP start from, None
            for no factors.
        post_norm: Norms after the sums instead of before attention and MLP.
        drop_path: Probability of dropping attention or MLP for a sample.
    """

    def __init__(
        self,
        attn: nn.Module,
        channels: int,
        mlp_ratio: float,
        pos_kernel: int = 3,
        mlp_kernel: int = 0,
        layer_scale: float | None = None,
        post_norm: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.pos_conv = (
            DepthwiseConv2d(channels, pos_kernel, residual=True) if pos_kernel else None
        )
        self.norm1 = LayerNorm2d(channels)
        self.attn = attn
        self.layer_scale1 = _layer_scale(channels, layer_scale)
        self.norm2 = LayerNorm2d(channels)
        self.mlp = Mlp2d(channels, mlp_ratio, mlp_kernel)
        self.layer_scale2 = _layer_scale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)
        self.post_norm = post_norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.pos_conv is not None:
            x = self.pos_conv(x)
        if self.post_norm:
            x = self.norm1(x + self.drop_path(self.layer_scale1(self.attn(x))))
            return self.norm2(x + self.drop_path(self.layer_scale2(self.mlp(x))))
        x = x + self.drop_path(self.layer_scale1(self.attn(self.norm1(x))))
        return x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))


def _layer_scale(channels: int, start: float | None) -> nn.Module:
    if start is None:
        return nn.Identity()
    return LayerScale2d(channels, start)


def _build_attention(
    arch: Mapping[str, Any], stage: int, regions_per_side: int
) -> nn.Module:
    channels, topk = arch['embed_dims'][stage], arch['topks'][stage]
    further = arch['attn_cfgs'][stage]
    if topk == 0:
        return ConvMixer2d(channels, **further)
    num_heads = arch['num_heads'][stage]
    if topk == 'all':
        return FullAttention2d(channels, num_heads, **further)
    return BiLevelRoutingAttention(
        channels, num_heads, topk, regions_per_side, **further
    )


def _build_downsampling(arch: Mapping[str, Any], stage: int) -> nn.Sequential:
    before, after = (3, *arch['embed_dims'])[stage : stage + 2]
    norm = NORMS[arch['downsample_norm']]
    if arch['downsampling'] == 'patches':
        layers = (
            [norm(before), nn.Conv2d(before, after, kernel_size=2, stride=2)]
            if stage
            else [nn.Conv2d(before, after, kernel_size=4, stride=4), norm(after)]
        )
    elif stage:
        layers = [_strided_conv(before, after), norm(after)]
    else:
        half = after // 2
        layers = [_strided_conv(before, half), norm(half), nn.GELU()]
        layers += [_strided_conv(half, after), norm(after)]
    if arch['downsample_act']:
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


def _strided_conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1)


def _check(
    arch: Mapping[str, Any], regions_per_side: Sequence[int], out_norm: str
) -> None:
    num_stages = len(arch['embed_dims'])
    if len(regions_per_side) != num_stages:
        raise ValueError(
            f'regions_per_side must be one number or one a stage, {num_stages}; got '
            f'{regions_per_side}.'
        )
    for i in range(num_stages):
        if arch['topks'][i] == 0:
            continue
        check_heads(
            arch['embed_dims'][i], arch['num_heads'][i], name=f'embed_dims[{i}]'
        )
        if arch['topks'][i] != 'all':
            padding = arch['attn_cfgs'][i].get('padding', 'input')
            check_regions(regions_per_side[i], arch['topks'][i], padding)
    check_choice('out_norm', out_norm, NORMS)
