"""Backbones of ours: the definition beside the fast paths, and other backbones."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median

import torch
from mmengine.config import Config
from torch import Tensor, nn

from benchmark.timing import Candidate, Stopwatch
from benchmark.timm_backbones import count_parameters, timm_backbones
from mmsparse.analysis.flops import measure
from mmsparse.apis import build_model
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import StagedBackbone
from mmsparse.ops import reference_only

REFERENCE, FAST = 'reference', 'fast paths'
FORWARD, TRAINING = 'forward', 'forward + backward'
PRODUCT_SIDE = 2048

Paths = Callable[[], AbstractContextManager]  # which paths the ops take within


def backbone_candidates(
    cfg: Config,
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
    reference: bool = True,
    training: bool = True,
    others: bool = True,
) -> tuple[list[Candidate], dict[str, int]]:
    """Prepare the backbone of a model, with random weights, for pictures of noise.

    Args:
        cfg: Config of any model with a backbone of ours.
        size: Height and width of the pictures.
        batch_size: Number of pictures.
        device: Where to compute.
        reference: Whether to compute by the definition, too.
        training: Whether to go backward, too.
        others: Whether to run timm's backbones of the same size beside it, if timm is
            installed.

    Returns:
        The definition and the fast paths of the same weights, then the others; and the
        multiply-adds of one forward pass of each, by name.

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
    alternatives: list[tuple[str, nn.Module, Paths]] = [(FAST, backbone, nullcontext)]
    if reference:
        alternatives.insert(0, (REFERENCE, backbone, reference_only))
    if others:
        for name, other in timm_backbones(count_parameters(backbone), size).items():
            alternatives.append((name, other, nullcontext))
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(batch_size, 3, *size, generator=generator).to(device)
    candidates = [
        Candidate(name, partial(_run, model.to(device), pictures, training, paths))
        for name, model, paths in alternatives
    ]
    macs = {
        name: batch_size * measure(model, size)[-1].macs
        for name, model, _ in alternatives
    }
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
    paths: Paths,
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
