"""Backbones in float32, bfloat16 and int8, without gradients."""

import copy
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image
from torch import Tensor, nn

from benchmark.timing import FORWARD, Candidate, Stopwatch
from mmsparse.apis import build_model, load_model
from mmsparse.errors import UsageError

FLOAT32 = 'float32'
PRECISIONS = ('bf16', 'int8')


def precision_candidates(
    cfg: Config,
    checkpoint: str | None,
    images: Tensor,
    precisions: list[str],
) -> tuple[list[Candidate], dict[str, float]]:
    """Prepare the backbone of a model in several precisions, with the same weights.

    Args:
        cfg: Config of any model with a backbone of mmsparse.
        checkpoint: File of its weights; None for random ones.
        images: Normalized images, (B, C, H, W).
        precisions: Some of ``PRECISIONS``.

    Returns:
        A candidate in float32 and one for each precision, and for each precision the
        error: root mean square of the difference from float32 over all outputs, as a
        share of that of float32.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None
    model = load_model(cfg, checkpoint) if checkpoint else build_model(cfg)
    backbone = model.backbone.eval()
    candidates, errors = [], {}
    for name in (FLOAT32, *precisions):
        converted, inputs = convert(backbone, name), images
        if name == 'bf16':
            inputs = images.bfloat16()
        candidates.append(Candidate(name, partial(_run, converted, inputs)))
        if name != FLOAT32:
            errors[name] = _error(converted, inputs, backbone, images)
    return candidates, errors


def read_images(
    cfg: Config, folder: Path | None, size: tuple[int, int], batch_size: int
) -> Tensor:
    """Read images at equal steps of the sorted files of a folder, and normalize them.

    Args:
        cfg: Config with a ``data_preprocessor`` of mean and std.
        folder: Folder of PNG and JPEG files; None for images of noise.
        size: Height and width to resize to.
        batch_size: Number of images.

    Returns:
        (B, 3, H, W).

    Raises:
        UsageError: The folder has fewer images.
    """
    if folder is None:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, 3, *size, generator=generator)
    files = sorted(x for x in folder.rglob('*') if x.suffix in ('.png', '.jpg'))
    if len(files) < batch_size:
        raise UsageError(
            f'--images must have at least {batch_size} PNG or JPEG files; {folder} has '
            f'{len(files)}'
        )
    step = len(files) // batch_size
    images = [
        Image.open(path).convert('RGB').resize(size[::-1])
        for path in files[::step][:batch_size]
    ]
    pixels = torch.stack([torch.from_numpy(np.array(x)) for x in images]).float()
    settings = cfg.model.get('data_preprocessor') or cfg.data_preprocessor
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    return ((pixels - mean) / std).permute(0, 3, 1, 2)


def convert(backbone: nn.Module, precision: str) -> nn.Module:
    """Copy a backbone to a precision; int8 is that of linear layers on a CPU."""
    if precision == 'bf16':
        return copy.deepcopy(backbone).bfloat16()
    if precision == 'int8':
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # deprecated in favor of torchao
            return torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear})
    return backbone


@torch.no_grad()
def _error(
    converted: nn.Module, inputs: Tensor, backbone: nn.Module, images: Tensor
) -> float:
    found, expected = (
        torch.cat([x.float().flatten() for x in outs])
        for outs in (converted(inputs), backbone(images))
    )
    return ((found - expected).norm() / expected.norm()).item()


def _run(backbone: nn.Module, images: Tensor, watch: Stopwatch) -> None:
    with torch.no_grad(), watch.time(FORWARD):
        backbone(images)
