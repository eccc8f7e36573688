"""What every backbone of ours shares: stages, outputs, freezing, checkpointing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsparse.models.backbones.arch import RATE, check_kind


@dataclass(frozen=True)
class FeatureInfo:
    """The maps that a backbone returns; its methods are those of timm's FeatureInfo.

    Args:
        widths: C of every map.
        strides: Pixels from one cell to the next, of every map.
    """

    widths: tuple[int, ...]
    strides: tuple[int, ...]

    def channels(self) -> list[int]:
        """Tell C of every map."""
        return list(self.widths)

    def reduction(self) -> list[int]:
        """Tell the stride of every map."""
        return list(self.strides)


class StagedBackbone(BaseModule):
    """A sequence of stages, each a downsampling followed by blocks.

    A child builds ``self.downsamples`` and ``self.stages``, lists of equal length up to
    the last stage that is returned, and ``self.out_norms``, the norms of the outputs by
    kind and stage (``layer0``, ``batch3``: kinds differ in name, so that weights of one
    never load into another); then it calls :meth:`freeze`. Only outputs pass through
    ``out_norms``; the next stage goes on from the plain map. Where the official model
    goes on from the normed map, the norm is the last module of its stage, and there are
    no ``out_norms``. Maps are (B, C, H, W) in channels-last storage throughout.

    Args:
        embed_dims: C of the map of every stage of the architecture.
        out_indices: Stages to return, ascending, counted from 0.
        out_norm: Kind of the norms of the outputs; None where stages end with theirs.
        frozen_stages: Stages without training, from the first on; 0 for the stem alone
            and -1 for none.
        norm_eval: Keep BatchNorm layers in eval mode while training.
        with_cp: Recompute blocks in the backward pass to save memory.
        init_cfg: Initialization, for example
            ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` is out of range.
    """

    downsamples: nn.ModuleList
    stages: nn.ModuleList
    out_norms: nn.ModuleDict

    default_init_cfg = (
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    )

    def __init__(
        self,
        embed_dims: Sequence[int],
        out_indices: Sequence[int],
        out_norm: str | None,
        frozen_stages: int,
        norm_eval: bool,
        with_cp: bool,
        init_cfg: dict | list[dict] | None,
    ) -> None:
        default = [dict(cfg) for cfg in self.default_init_cfg]
        super().__init__(default if init_cfg is None else init_cfg)
        num_stages = len(embed_dims)
        _check_out_indices(out_indices, num_stages)
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(
                f'frozen_stages must be an integer from -1 to {num_stages}; got '
                f'{frozen_stages!r}.'
            )
        self.embed_dims = tuple(embed_dims)
        self.out_indices = tuple(out_indices)
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x: Pictures, (B, 3, H, W), H and W at least ``min_side``.

        Returns:
            One (B, C, H', W') for each of ``out_indices``.

        Raises:
            ValueError: ``x`` is no such batch, or smaller.
        """
        _check_pictures(x, self.min_side)
        x = x.contiguous(memory_format=torch.channels_last)
        outs = []
        for i, (downsample, stage) in enumerate(
            zip(self.downsamples, self.stages, strict=True)
        ):
            x = downsample(x)
            for block in stage:
                x = self._run(block, x)
            if i in self.out_indices:
                outs.append(self._out_norm(i)(x))
        return tuple(outs)

    @property
    def min_side(self) -> int:
        """Shortest side of a picture: the stride of the last stage, in pixels."""
        return 4 * 2 ** (len(self.stages) - 1)

    @property
    def feature_info(self) -> FeatureInfo:
        """What the returned maps are, as timm's backbones tell it."""
        return FeatureInfo(
            widths=tuple(self.embed_dims[i] for i in self.out_indices),
            strides=tuple(4 * 2**i for i in self.out_indices),
        )

    def _out_norm(self, stage: int) -> nn.Module:
        if self.out_norm is None:
            return nn.Identity()
        return self.out_norms[f'{self.out_norm}{stage}']

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.with_cp and x.requires_grad:
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def freeze(self) -> None:
        """Take the parameters of the frozen stages out of training."""
        for module in self._frozen_modules():
            module.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that must not decay: norms, position bias."""
        return {
            f'{prefix}.{name}'
            for prefix, module in self.named_modules()
            for name, _ in module.named_parameters(recurse=False)
            if isinstance(module, (nn.LayerNorm, _BatchNorm))
            or name == 'relative_position_bias_table'
        }

    def train(self, mode: bool = True) -> 'StagedBackbone':
        """Switch modes; frozen stages, and with ``norm_eval`` BatchNorm, stay in eval.

        Args:
            mode: True for training, False for evaluation.

        Returns:
            The backbone itself.
        """
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        count = self.frozen_stages
        norms = [self._out_norm(i) for i in self.out_indices if i < count]
        return [*self.downsamples[: max(count, 1)], *self.stages[:count], *norms]


def drop_path_rates(last: float, depths: Sequence[int]) -> list[list[float]]:
    """Spread stochastic depth over the blocks, growing linearly from 0.

    Args:
        last: Rate of the last block, at least 0 and less than 1.
        depths: Number of blocks of every stage.

    Returns:
        The rate of every block of every stage.

    Raises:
        ValueError: ``last`` is out of range.
    """
    check_kind('drop_path_rate', last, RATE)
    step = last / max(sum(depths) - 1, 1)
    ends = list(accumulate(depths, initial=0))
    return [[step * i for i in range(*stage)] for stage in pairwise(ends)]


def _check_out_indices(out_indices: Sequence[int], num_stages: int) -> None:
    if not isinstance(out_indices, Sequence):
        raise TypeError(f'out_indices must be a list of stages; got {out_indices!r}.')
    known = [i for i in range(num_stages) if i in out_indices]
    if not known or known != list(out_indices):
        raise ValueError(
            f'out_indices must be ascending stage numbers from 0 to {num_stages - 1}; '
            f'got {out_indices!r}.'
        )


def _check_pictures(x: Tensor, min_side: int) -> None:
    if x.ndim != 4 or x.shape[1] != 3 or not x.shape[0] or min(x.shape[2:]) < min_side:
        raise ValueError(
            f'x must be pictures of shape (B, 3, H, W) with B at least 1 and H and W '
            f'at least {min_side}, for the last stage; got {tuple(x.shape)}. Enlarge '
            f'or pad them.'
        )
