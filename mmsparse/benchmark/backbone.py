"""Backbones of ours: the definition beside the fast paths."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmsparse.benchmark.timing import Candidate, Stopwatch
from mmsparse.complexity import measure
from mmsparse.hosts import UsageError, build_model
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.ops import reference_only

FORWARD, TRAINING = 'forward', 'forward + backward'
PRODUCT_SIDE = 2048


def backbone_candidates(
    cfg: Config,
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    reference: bool = True,
    training: bool = True,
) -> tuple[list[Candidate], int]:
    """Prepare the backbone of a model, with random weights, for pictures of noise.

    Args:
        cfg: Config of any model with a backbone of ours.
        size: Height and width of the pictures.
        batch_size: Number of pictures.
        device: Where to compute.
        reference: Whether to compute by the definition, too.
        training: Whether to go backward, too.

    Returns:
        The definition and the fast paths of the same weights, and the multiply-adds of
        one forward pass.

    Raises:
        UsageError: The backbone is not one of ours.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None
    backbone = build_model(cfg).backbone
    if not isinstance(backbone, StagedBackbone):
        raise UsageError(
            f'model.backbone must be one of mmsparse; got {type(backbone).__name__}.'
        )
    macs = batch_size * measure(backbone, size)[-1].macs
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(batch_size, 3, *size, generator=generator).to(device)
    run = partial(_run, backbone.to(device), pictures, training)
    candidates = [Candidate('fast paths', partial(run, nullcontext))]
    if reference:
        candidates.insert(0, Candidate('reference', partial(run, reference_only)))
    return candidates, macs


def product_rate(device: torch.device, rounds: int = 5) -> float:
    """Measure how fast large matrices are multiplied, in single precision.

    Args:
        device: Where to compute.
        rounds: Number of products; the median counts.

    Returns:
        Multiply-adds a second.
    """
    a, b = torch.rand(2, PRODUCT_SIDE, PRODUCT_SIDE, device=device)
    a @ b
    seconds = []
    for _ in range(rounds):
        watch = Stopwatch(device)
        with watch.time('product'):
            a @ b
        seconds.append(watch.seconds['product'])
    return PRODUCT_SIDE**3 / median(seconds)


def _run(
    backbone: nn.Module,
    pictures: Tensor,
    training: bool,
    paths: Callable[[], AbstractContextManager],
    watch: Stopwatch,
) -> None:
    backbone.eval()
    with paths(), torch.no_grad(), watch.time(FORWARD):
        backbone(pictures)
    if not training:
        return
    backbone.train()
    with paths(), watch.time(TRAINING):
        sum(x.mean() for x in backbone(pictures)).backward()
    backbone.zero_grad()
