"""Segmentors: training with and without checkpointing, and prediction."""

import copy
from functools import partial

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, PixelData
from torch import Tensor

from benchmark.timing import Candidate, Stopwatch
from mmsparse.apis import build_model
from mmsparse.errors import UsageError
from mmsparse.models.backbones.base import image_channels

TIME = 'time'


def training_candidates(
    cfg: Config, size: tuple[int, int], batch_size: int, device: torch.device
) -> list[Candidate]:
    """Prepare training steps of a segmentor on crops of noise, without the optimizer.

    Args:
        cfg: Config of a segmentor with a backbone of mmsparse; weights are random.
        size: Height and width of the crops.
        batch_size: Number of crops.
        device: Device of the runs.

    Returns:
        The plain step, and the step with checkpointed blocks of the backbone
        (``with_cp``).

    Raises:
        UsageError: The backbone has no ``with_cp``.
    """
    model = _build(cfg, device).train()
    if not hasattr(model.backbone, 'with_cp'):
        raise UsageError(
            'model.backbone must be one that has with_cp; got '
            f'{type(model.backbone).__name__}.'
        )
    generator = torch.Generator().manual_seed(0)
    shape = (batch_size, image_channels(model), *size)
    crops = torch.rand(shape, generator=generator).to(device)
    classes = model.decode_head.num_classes
    labels = torch.randint(classes, (batch_size, 1, *size), generator=generator)
    samples = [
        BaseDataElement(gt_sem_seg=PixelData(data=label)) for label in labels.to(device)
    ]
    return [
        Candidate(name, partial(_train, model, with_cp, crops, samples))
        for name, with_cp in (('plain', False), ('with_cp', True))
    ]


def prediction_candidate(
    cfg: Config, size: tuple[int, int], device: torch.device
) -> Candidate:
    """Prepare the prediction of one whole image of noise.

    Args:
        cfg: Config of a segmentor; weights are random.
        size: Height and width of the image.
        device: Device of the runs.

    Returns:
        The prediction.
    """
    cfg = copy.deepcopy(cfg)
    cfg.model.test_cfg = dict(mode='whole')
    model = _build(cfg, device).eval()
    shape = (1, image_channels(model), *size)
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return Candidate('predict', partial(_predict, model, image.to(device)))


def _build(cfg: Config, device: torch.device) -> BaseModel:
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.init_cfg = None
    return build_model(cfg).to(device)


def _train(
    model: BaseModel,
    with_cp: bool,
    crops: Tensor,
    samples: list[BaseDataElement],
    watch: Stopwatch,
) -> None:
    model.backbone.with_cp = with_cp
    with watch.time(TIME):
        loss, _ = model.parse_losses(model(crops, samples, mode='loss'))
        loss.backward()
    model.zero_grad()


@torch.no_grad()
def _predict(model: BaseModel, image: Tensor, watch: Stopwatch) -> None:
    with watch.time(TIME):
        model(image, mode='predict')
