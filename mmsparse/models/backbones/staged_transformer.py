"""StagedTransformer: the layout of Swin Transformer with any attention layer."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

from torch import Tensor, nn

from mmsparse.models.backbones.arch import SizedArch
from mmsparse.models.backbones.base import (
    OUT_NORMS,
    Stage,
    StagedBackbone,
    drop_path_rates,
    stage_errors,
)
from mmsparse.models.layers.attention_config import build_attention
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.common import check_choice, project
from mmsparse.models.layers.norm import LayerNorm2d
from mmsparse.ops._layout import channels_first, channels_last
from mmsparse.ops.regions import pad_to_multiple
from mmsparse.registry import MODELS

EPS = 1e-5
WINDOW = 7  # of Swin Transformer
POSITION_BIAS = 'relative_position_bias_table'

LayerConfig = Mapping[str, Any]
StageConfig = LayerConfig | Sequence[LayerConfig]  # of its blocks in turn


@MODELS.register_module()
class StagedTransformer(StagedBackbone):
    """Swin Transformer with any attention layer in place of its shifted windows.

    Embeddings, norms, MLPs and their order are those of `Swin Transformer
    <https://arxiv.org/abs/2103.14030>`_, so that two of these models differ in
    attention alone. Without ``attention`` it is Swin.

    Args:
        arch: Name of an entry of ``arch_settings``, or the settings of a
            :class:`SizedArch`, or a dict with such a name under ``base`` and the
            settings that differ.
        attention: Config of a layer: its ``type``, for example
            ``mmsparse.NeighborhoodAttention2d``, and its arguments other than
            ``in_channels``; one for all stages or a list of one per stage. A stage may
            have a list of them, which its blocks have in turn. ``num_heads`` and
            ``map_size`` are those of the stage if not given. None for windows of 7,
            shifted in every other block.
        out_indices: Stages to return, counted from 0, negative ones from the end; each
            once, in ascending order.
        out_norm: Norm of the outputs: ``class`` as before the classifier, or ``layer``
            as for dense tasks. They differ in name only, so that weights of one are not
            loaded into the other.
        drop_path_rate: Drop path rate of the last block; grows linearly from 0.
        frozen_stages: Number of stages to freeze; 0 freezes the stem alone, -1 nothing.
        norm_eval: Keep BatchNorm layers, which an attention layer may have, in eval
            mode during training.
        with_cp: Use activation checkpointing in the blocks to save memory.
        in_channels: Channels of the images; weights of RGB images are adapted to them
            when they are loaded.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``. By default every layer starts
            as it is built.
        pretrained: Deprecated by OpenMMLab: the checkpoint of such an ``init_cfg``.

    Raises:
        ValueError: An argument is unknown or out of range, or a layer does not fit its
            stage.
    """

    family = 'staged'
    arch_type = SizedArch
    default_init_cfg = ()
    arch_settings = {
        'nano': SizedArch(
            embed_dims=(32, 64, 128, 256),
            depths=(2, 2, 2, 1),
            num_heads=(1, 2, 4, 8),
            mlp_ratios=3,
            img_size=128,
        ),
        'tiny': SizedArch(
            embed_dims=(96, 192, 384, 768),
            depths=(2, 2, 6, 2),
            num_heads=(3, 6, 12, 24),
        ),
    }

    def __init__(
        self,
        arch: str | Mapping[str, Any] | SizedArch = 'tiny',
        attention: LayerConfig | Sequence[StageConfig] | None = None,
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
        layers = _layers_per_stage(attention, self.arch)
        rates = drop_path_rates(drop_path_rate, self.arch.depths)
        for i in range(self.num_stages):
            with stage_errors(i):
                self.add_stage(
                    _build_downsample(self.arch, i, in_channels),
                    _build_stage(self.arch, i, layers[i], rates[i]),
                )
        self.add_out_norms(partial(LayerNorm2d, eps=EPS))
        self.freeze()

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay.

        As for Swin: those of norms, and tables of relative position biases. Position
        biases of other names decay.
        """
        names = (name for name, _ in self.named_parameters())
        return super().no_weight_decay() | {x for x in names if POSITION_BIAS in x}


class PatchMerging2d(nn.Module):
    """Norm and linear layer on the channels of 2x2 patches.

    Args:
        in_channels: C of the input; a row or a column of zeros is added to odd ones.
        out_channels: C of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(4 * in_channels, EPS)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / 2, W / 2), the size rounded up."""
        x = pad_to_multiple(channels_last(x), (2, 2))
        x = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)  # (B, H / 2, W / 2, 4 * C)
        x = self.norm(channels_first(x))
        return channels_first(project(self.reduction, channels_last(x)))


def _build_downsample(arch: SizedArch, i: int, in_channels: int) -> nn.Module:
    if i:
        return PatchMerging2d(*arch.embed_dims[i - 1 : i + 1])
    conv = nn.Conv2d(in_channels, arch.embed_dims[0], kernel_size=4, stride=4)
    return nn.Sequential(conv, LayerNorm2d(arch.embed_dims[0], EPS))


def _build_stage(
    arch: SizedArch, i: int, layers: Sequence[LayerConfig], rates: Sequence[float]
) -> Stage:
    channels, num_heads = arch.embed_dims[i], arch.num_heads[i]
    blocks = (
        TransformerBlock2d(
            build_attention(layer, channels, num_heads, arch.map_size(i)),
            channels,
            mlp_ratio=arch.mlp_ratios[i],
            norm_eps=EPS,
            drop_path=rate,
        )
        for layer, rate in zip(islice(cycle(layers), len(rates)), rates, strict=True)
    )
    return Stage(*blocks)


def _layers_per_stage(attention: Any, arch: SizedArch) -> list[list[LayerConfig]]:
    """Return the attention layers of every stage, which its blocks have in turn."""
    if attention is None:
        return [_shifted_windows(arch.map_size(i)) for i in range(arch.num_stages)]
    stages = [attention] * arch.num_stages if _is_config(attention) else attention
    if _is_list(stages) and len(stages) == arch.num_stages:
        layers = [[x] if _is_config(x) else x for x in stages]
        if all(_is_list(x) and x and all(map(_is_config, x)) for x in layers):
            return layers
    raise ValueError(
        'attention must be the config of a layer, or a list of one per stage, '
        f'{arch.num_stages}, each a config or a list of the configs that its blocks '
        f'have in turn; got {attention!r}.'
    )


def _shifted_windows(map_size: int) -> list[LayerConfig]:
    window = min(WINDOW, map_size)
    shift = window // 2 if window < map_size else 0
    layer = dict(type='mmsparse.WindowAttention2d', window_size=window)
    return [layer, dict(layer, shift=shift)]


def _is_config(x: Any) -> bool:
    return isinstance(x, Mapping)


def _is_list(x: Any) -> bool:
    return isinstance(x, (list, tuple))
