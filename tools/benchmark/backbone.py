"""Backbones: reference and fast paths of mmsparse's, and timm's backbones."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from mmengine.config import Config
from torch import Tensor, nn

from benchmark.timing import FORWARD, TRAINING, Candidate, Stopwatch
from benchmark.timm_backbones import count_parameters, timm_backbones
from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.ops import reference_only

REFERENCE, FAST = 'reference', 'fast paths'

Backends = Callable[[], AbstractContextManager]  # chooses backends of the ops inside


def backbone_candidates(
    cfg: Config,
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    reference: bool = True,
    training: bool = True,
    timm: bool = True,
) -> list[Candidate]:
    """Prepare the backbone of a model, with random weights and images of noise.

    Args:
        cfg: Config of any model with a backbone of mmsparse.
        size: Height and width of the images.
        batch_size: Number of images.
        device: Device of the runs.
        reference: Whether to run the reference implementations, too.
        training: Whether to run a backward pass, too.
        timm: Whether to run timm's backbones of about the same size, if installed.

    Returns:
        Reference and fast paths with the same weights, then timm's backbones.

    Raises:
        UsageError: The backbone is not one of mmsparse.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None
    backbone = build_model(cfg).backbone
    if not isinstance(backbone, StagedBackbone):
        raise UsageError(
            f'model.backbone must be one of mmsparse; got {type(backbone).__name__}.'
        )
    alternatives: list[tuple[str, nn.Module, Backends]] = [
        (FAST, backbone, nullcontext)
    ]
    if reference:
        alternatives.insert(0, (REFERENCE, backbone, reference_only))
    if timm:
        for name, other in timm_backbones(count_parameters(backbone), size).items():
            alternatives.append((name, other, nullcontext))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, *size, generator=generator).to(device)
    return [
        Candidate(
            name,
            partial(_run, model.to(device), images, training, backends),
            macs=batch_size * measure(model, size)[-1].macs,
        )
        for name, model, backends in alternatives
    ]


def _run(
    backbone: nn.Module,
    images: Tensor,
    training: bool,
    backends: Backends,
    watch: Stopwatch,
) -> None:
    backbone.eval()
    with backends(), torch.no_grad(), watch.time(FORWARD):
        backbone(images)
    if not training:
        return
    backbone.train()
    with backends(), watch.time(TRAINING):
        sum(x.mean() for x in backbone(images)).backward()
    backbone.zero_grad()
