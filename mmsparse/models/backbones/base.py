"""Base class of the backbones: stages, outputs, freezing, activation checkpointing."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsparse.checkpoint.coverage import Official
from mmsparse.checkpoint.pretrained import checked_pretrained, deprecated_pretrained
from mmsparse.checkpoint.state_dict import find_prefix
from mmsparse.models.backbones.arch import Arch, Count, DropRate, check_setting
from mmsparse.models.backbones.feature_info import (
    FeatureInfo,
    resolve_indices,
    resolve_out_indices,
)
from mmsparse.models.backbones.images import adapt_channels, check_images, fix_size
from mmsparse.models.layers.block import TransformerBlock2d
from mmsparse.models.layers.common import check_choice
from mmsparse.ops._layout import channels_last

BACKBONES: dict[str, type['StagedBackbone']] = {}
OWN_KEYS = r'downsamples\.0\.'  # start of some keys of every backbone of mmsparse
MAX_GRAPHS = 64  # of all blocks, image sizes and modes
OUT_NORMS = ('class', 'layer')  # both LayerNorms: a classifier's, and others
NORM_LAYERS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)


class Stage(nn.Sequential):
    """Blocks of a stage; with ``with_cp``, each uses activation checkpointing.

    Hooks on it see the feature map before the norm of an output.
    """

    with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        for block in self:
            if self.with_cp and x.requires_grad and not torch.jit.is_tracing():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


class StagedBackbone(BaseModule):
    """A sequence of stages, each a downsampling followed by blocks.

    A subclass with a ``family`` is in ``BACKBONES`` under that name, and thus in
    :func:`mmsparse.create_backbone` and in the contract test. ``official_keys`` is a
    regular expression of the start of some keys that only the authors' weights have,
    None without such weights. Its constructor calls
    :meth:`add_stage` ``self.num_stages`` times, within :func:`stage_errors`, then
    :meth:`add_out_norms` unless its stages end with norms, and :meth:`freeze`.

    Only outputs pass through ``out_norms``; the next stage takes the feature map before
    the norm. Where the official model continues from the normalized feature map, the
    norm is the last module of its stage, and there are no ``out_norms``. Feature maps
    are (B, C, H, W) in channels-last memory format throughout.

    Args:
        arch: Name of an entry of ``arch_settings``, or the settings as an instance of
            ``arch_type`` or a dict.
        out_indices: Stages to return, counted from 0, negative ones from the end. Each
            is returned once, in ascending order, as by timm and mmdet.
        out_norm: Type of the norms of the outputs; None where stages end with theirs.
        frozen_stages: Number of stages to freeze; 0 freezes the stem alone, -1 nothing.
        norm_eval: Keep BatchNorm layers in eval mode during training.
        with_cp: Use activation checkpointing in the blocks to save memory.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``.
        in_channels: Channels of the images. The first convolution adapts weights of
            RGB images when it loads them: it sums them for one channel, and repeats
            them, scaled, for others.
        pretrained: Deprecated by OpenMMLab: the checkpoint of such an ``init_cfg``.

    Raises:
        ValueError: ``arch``, ``out_indices``, ``frozen_stages`` or ``in_channels`` is
            unknown or out of range.
    """

    family: ClassVar[str]
    official_keys: ClassVar[str | None] = None
    crop_mode: ClassVar[str] = 'center'  # timm's name of the resizing in evaluations
    arch_type: ClassVar[type[Arch]]
    arch_settings: ClassVar[Mapping[str, Arch]]
    default_init_cfg: ClassVar[tuple[dict, ...]] = (
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    )

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        family = cls.__dict__.get('family')  # not that of a parent
        if family in BACKBONES:
            raise ValueError(
                f'family must be a new name; {family!r} is {BACKBONES[family]}.'
            )
        if family is not None:
            BACKBONES[family] = cls

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch,
        out_indices: Sequence[int],
        out_norm: str | None,
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict | list[dict] | None,
        in_channels: int = 3,
        pretrained: str | None = None,
    ) -> None:
        if pretrained is not None:
            init_cfg = deprecated_pretrained(pretrained, init_cfg)
        default = [dict(cfg) for cfg in self.default_init_cfg]
        super().__init__(default if init_cfg is None else init_cfg)
        self.arch = self.resolve_arch(arch)
        total = self.arch.num_stages
        self.out_indices = resolve_out_indices(out_indices, total)
        if frozen_stages not in range(-1, total + 1):
            raise ValueError(
                f'frozen_stages must be an integer from -1 to {total}; got '
                f'{frozen_stages!r}.'
            )
        check_setting('in_channels', in_channels, Count)
        self.in_channels = in_channels
        self.num_stages = max(self.out_indices) + 1  # later ones have no output
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.downsamples = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.with_cp = with_cp

    def add_stage(self, downsample: nn.Module, stage: Stage) -> None:
        """Append the downsampling and the blocks of the next stage."""
        stage.with_cp = self.with_cp
        self.downsamples.append(downsample)
        self.stages.append(stage)

    def add_out_norms(self, norm: Callable[[int], nn.Module]) -> None:
        """Add a norm for every output, which ``norm`` builds for a number of channels.

        They are called by type and stage, ``layer0`` or ``batch3``: names differ, so
        that weights of one type never load into another.
        """
        self.out_norms = nn.ModuleDict(
            {
                f'{self.out_norm}{i}': norm(self.arch.embed_dims[i])
                for i in self.out_indices
            }
        )

    def init_weights(self) -> None:
        """Initialize by init_cfg; raise UsageError if a file has few of the weights."""
        with checked_pretrained(self, recognize_official):
            super().init_weights()

    @classmethod
    def resolve_arch(cls, arch: str | Mapping[str, Any] | Arch) -> Any:
        """Return the settings of an architecture.

        Args:
            arch: A name in ``arch_settings``, or the settings as an instance of
                ``arch_type`` or a dict: all of them, or such a name under ``base`` and
                those that differ.

        Returns:
            An instance of ``arch_type`` with one value per stage in per-stage settings.

        Raises:
            ValueError: The name is unknown, or a setting is missing, unknown, of
                another type or out of range.
        """
        return cls.arch_type.resolve(arch, cls.arch_settings)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            x: Images, (B, in_channels, H, W), H and W at least ``min_side``.

        Returns:
            One (B, C, H', W') for each of ``out_indices``.

        Raises:
            ValueError: ``x`` has another shape, or is smaller.
        """
        x = self._prepare(x)
        outs = []
        for i, (downsample, stage) in enumerate(
            zip(self.downsamples, self.stages, strict=True)
        ):
            x = stage(downsample(x))
            if i in self.out_indices:
                outs.append(self._out_norm(i)(x))
        return tuple(outs)

    def compile_blocks(self, **options: Any) -> None:
        """Compile every block by itself, in place, with :func:`torch.compile`.

        Blocks of the same structure share one graph; in training, those of the same
        drop rate. A graph of the whole model repeats them all, and takes the compiler
        several times as long.

        Args:
            **options: Arguments of :func:`torch.compile`, ``mode`` for example.
        """
        # All graphs belong to the code of one class: those of every stage and type of
        # block, for training and for evaluation. Beyond its limit, 8 by default, the
        # compiler would run further ones without compilation.
        config = torch._dynamo.config
        config.cache_size_limit = max(config.cache_size_limit, MAX_GRAPHS)
        for stage in self.stages:
            for block in stage:
                if isinstance(block, TransformerBlock2d):
                    block.compile(**options)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute feature maps of any stages; arguments and results are those of timm.

        Args:
            x: Images, (B, in_channels, H, W).
            indices: Stages, counted from 0, negative ones from the end; an integer is
                the number of last stages, None all.
            norm: Whether the feature maps of stages in ``out_indices`` are normalized
                as by :meth:`forward`.
            stop_early: Whether to compute no stage after the last of ``indices``.
            output_fmt: ``NCHW``, or ``NHWC`` for (B, H, W, C).
            intermediates_only: Whether to return the feature maps alone.

        Returns:
            The output of the last computed stage, normalized if it is in
            ``out_indices``, (B, C, H', W'), and a list of the feature maps in ascending
            order of the stages; or the list alone.

        Raises:
            ValueError: ``indices`` or ``output_fmt`` is out of range, or ``x`` has
                another shape or is smaller.
        """
        check_choice('output_fmt', output_fmt, ('NCHW', 'NHWC'))
        indices = resolve_indices('indices', indices, self.num_stages)
        last = indices[-1] if stop_early else self.num_stages - 1
        x = self._prepare(x)
        intermediates = []
        for i in range(last + 1):
            x = self.stages[i](self.downsamples[i](x))
            normalized = self._out_norm(i)(x) if i in self.out_indices else x
            if i in indices:
                intermediates.append(normalized if norm else x)
        if output_fmt == 'NHWC':
            intermediates = [channels_last(y) for y in intermediates]
        return intermediates if intermediates_only else (normalized, intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False
    ) -> list[int]:
        """Remove the stages after those of ``indices``, as timm's models do.

        Outputs of removed stages are removed; if no other is left, the output is the
        feature map of the last stage without a norm.

        Args:
            indices: Stages to keep, see :meth:`forward_intermediates`.
            prune_norm: Whether to remove the norms of the outputs.

        Returns:
            The stages in ``indices``, counted from 0.
        """
        kept = resolve_indices('indices', indices, self.num_stages)
        self.num_stages = kept[-1] + 1
        del self.stages[self.num_stages :], self.downsamples[self.num_stages :]
        outs = tuple(i for i in self.out_indices if i < self.num_stages)
        if self.out_norm is not None:
            normalized = () if prune_norm else outs
            names = [f'{self.out_norm}{i}' for i in normalized]
            self.out_norms = nn.ModuleDict({x: self.out_norms[x] for x in names})
            self.out_norm = self.out_norm if names else None
        self.out_indices = outs or kept[-1:]
        return list(kept)

    def _prepare(self, x: Tensor) -> Tensor:
        check_images(x, self.in_channels, self.min_side)
        if torch.jit.is_tracing():
            x = fix_size(x)
        # In channels-last memory format; torch.func cannot ask for it by name.
        return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)

    @property
    def min_side(self) -> int:
        """Minimum side of an image in pixels: the stride of the last stage."""
        return 4 * 2 ** (len(self.stages) - 1)

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, strides and module names of stages and outputs, as in timm."""
        return FeatureInfo.of_stages(
            self.arch.embed_dims[: self.num_stages], self.out_indices
        )

    @property
    def num_features(self) -> int:
        """Channels of the last stage."""
        return self.arch.embed_dims[self.num_stages - 1]

    @property
    def with_cp(self) -> bool:
        """Whether the blocks use activation checkpointing."""
        return self._with_cp

    @with_cp.setter
    def with_cp(self, enable: bool) -> None:
        self.set_grad_checkpointing(enable)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Enable or disable activation checkpointing of the blocks, as in timm."""
        self._with_cp = enable
        for stage in self.stages:
            stage.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return regular expressions that group the parameters by depth, as in timm.

        Args:
            coarse: Whether a group is a stage, not a block.

        Returns:
            The expressions of ``stem`` and ``blocks``, for timm's
            ``group_parameters``.
        """
        if coarse:
            return dict(
                stem=r'^downsamples\.0\.', blocks=r'^(?:stages|downsamples)\.(\d+)'
            )
        return dict(
            stem=r'^downsamples\.0\.',
            blocks=[
                (r'^downsamples\.(\d+)', (0,)),
                (r'^stages\.(\d+)\.(\d+)', None),
                (r'^stages\.(\d+)\.norm', (999,)),
                (r'^out_norms', (99999,)),
            ],
        )

    def _out_norm(self, stage: int) -> nn.Module:
        if self.out_norm is None:
            return nn.Identity()
        return self.out_norms[f'{self.out_norm}{stage}']

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay: those of norms.

        The name and the return type are timm's. Optimizers treat biases by shape or
        name, so they are not listed.
        """
        return {
            f'{module_name}.{name}'
            for module_name, module in self.named_modules()
            if isinstance(module, NORM_LAYERS)
            for name, _ in module.named_parameters()
        }

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, as in mmpretrain.

        Layer-wise learning-rate decay needs them. The stem has depth 0, every block is
        one deeper, and a downsampling or the norm of a stage has the depth of the block
        before it. Norms of outputs and parameters without ``prefix``, as of a head,
        have the last depth.

        Args:
            param_name: Name of the parameter in the model.
            prefix: Prefix of the backbone's parameters in it, ``backbone.``.

        Returns:
            Depth, from 0, and number of depths.
        """
        depths = self.arch.depths[: self.num_stages]
        depth = sum(depths) + 1
        num_depths = depth + 1
        part, *place = param_name.removeprefix(prefix).split('.')
        if param_name.startswith(prefix) and part in ('downsamples', 'stages'):
            stage = int(place[0])
            depth = sum(depths[:stage])
            if part == 'stages':
                depth += int(place[1]) + 1 if place[1].isdigit() else depths[stage]
        return depth, num_depths

    def freeze(self) -> None:
        """Disable the gradients of the frozen stages."""
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Set the mode; frozen stages, and with norm_eval BatchNorm, stay in eval."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        for name, module in self.named_modules(prefix=prefix[:-1]):
            if isinstance(module, nn.Conv2d):
                adapt_channels(state_dict, f'{name}.weight', module.weight.shape)
                break
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        count = self.frozen_stages
        norms = [self._out_norm(i) for i in self.out_indices if i < count]
        return [*self.downsamples[: max(count, 1)], *self.stages[:count], *norms]


def recognize_official(keys: Collection[str]) -> Official | None:
    """Describe official weights of a backbone; return None for any others."""
    if find_prefix(keys, OWN_KEYS) is None:
        for family, backbone in BACKBONES.items():
            marker = backbone.official_keys
            if marker is not None and find_prefix(keys, marker) is not None:
                return Official.of_family(family)
    return None


def image_channels(model: nn.Module) -> int:
    """Return the channels of the images of a model: 3 but for mmsparse's backbones."""
    backbone = getattr(model, 'backbone', model)
    return backbone.in_channels if isinstance(backbone, StagedBackbone) else 3


@contextmanager
def stage_errors(stage: int) -> Iterator[None]:
    """Add the stage to the ValueError of a layer, ``stages[2]: ...``."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f'stages[{stage}]: {error}') from error


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Compute the drop path rates of all blocks, growing linearly from 0.

    Args:
        last: Rate of the last block, in [0, 1).
        depths: Number of blocks of every stage.

    Returns:
        The rate of every block of every stage.

    Raises:
        ValueError: ``last`` is out of range.
    """
    check_setting('drop_path_rate', last, DropRate)
    step = last / max(sum(depths) - 1, 1)
    ends = list(accumulate(depths, initial=0))
    return [[step * i for i in range(*stage)] for stage in pairwise(ends)]
