"""Detectors: Focus-DETR, and mmdet's DINO with the same modules."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from benchmark.timing import Candidate, Stopwatch
from mmsparse.apis import build_model
from mmsparse.errors import UsageError

ENCODER, WHOLE = 'encoder', 'whole model'
STRIDES = (8, 16, 32, 64)


def detector_candidates(
    cfg: Config,
    keep_ratios: Sequence[float],
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
) -> list[Candidate]:
    """Prepare DINO and Focus-DETR, with random weights and images of noise.

    The part called encoder starts at the flattened feature maps and ends at the memory;
    in Focus-DETR it includes token selection.

    Args:
        cfg: Config of a Focus-DETR.
        keep_ratios: Keep ratios as in the paper: mean fractions of the tokens that the
            encoder layers keep, in (0, mean of the cascade]; one Focus-DETR for each.
        size: Height and width of the images.
        batch_size: Number of images.
        device: Device of the runs.

    Returns:
        DINO, then the others.

    Raises:
        ValueError: A ratio is out of range, or images have fewer tokens than DINO has
            queries.
        UsageError: The config is not of a Focus-DETR.
    """
    _check_size(cfg, size)
    images = torch.randn(
        batch_size, 3, *size, generator=torch.Generator().manual_seed(0)
    ).to(device)
    configs = {'DINO': to_dino(cfg)}
    for ratio in keep_ratios:
        configs[f'Focus-DETR {ratio:g}'] = with_keep_ratio(cfg, ratio)
    return [
        Candidate(name, partial(_predict, _build(settings).to(device), images))
        for name, settings in configs.items()
    ]


def to_dino(cfg: Config) -> Config:
    """Return the config of a DINO that differs from a Focus-DETR in the encoder only.

    Args:
        cfg: Config of the Focus-DETR.

    Returns:
        A new config.

    Raises:
        UsageError: The config is not of a Focus-DETR.
    """
    found = cfg.get('model', {}).get('type')
    if found != 'mmsparse.FocusDETR':
        raise UsageError(f'model.type must be mmsparse.FocusDETR; got {found}.')
    # Imported late: the other benchmarks do not need mmdet.
    from mmsparse.models.detectors import FocusedTransformer

    cfg = copy.deepcopy(cfg)
    for name in inspect.signature(FocusedTransformer).parameters:
        cfg.model.pop(name, None)
    cfg.model.type, cfg.model.bbox_head.type = 'DINO', 'DINOHead'
    cfg.model.bbox_head.pop('loss_foreground', None)
    return cfg


def with_keep_ratio(cfg: Config, ratio: float) -> Config:
    """Set the mean fraction of the tokens that the encoder layers keep.

    Args:
        cfg: Config of a Focus-DETR.
        ratio: In (0, mean of the cascade].

    Returns:
        A new config.

    Raises:
        ValueError: The ratio is out of range.
    """
    cascade = cfg.model.get('cascade', (1.0, 0.8, 0.6, 0.6, 0.4, 0.2))
    largest = sum(cascade) / len(cascade)
    if not 0 < ratio <= largest:
        raise ValueError(
            f'A keep ratio must be in (0, {largest:g}], the mean of cascade='
            f'{tuple(cascade)}; got {ratio}.'
        )
    cfg = copy.deepcopy(cfg)
    cfg.model.keep_ratio = ratio / largest
    return cfg


def _check_size(cfg: Config, size: tuple[int, int]) -> None:
    """Raise ValueError for images that are too small for mmdet's DINO."""
    head = cfg.model.get('bbox_head', {})
    strides = head.get('loss_foreground', {}).get('strides', STRIDES)
    tokens = sum(ceil(size[0] / x) * ceil(size[1] / x) for x in strides)
    queries = cfg.model.get('num_queries', 0)
    if tokens < queries:
        raise ValueError(
            f'Images of {size[0]}x{size[1]} have {tokens} tokens, fewer than '
            f'num_queries={queries}; enlarge them or lower model.num_queries.'
        )


def _build(cfg: Config) -> BaseModel:
    detector = build_model(cfg)
    nn.init.normal_(detector.level_embed)  # mmdet leaves it uninitialized
    return detector.eval()


@torch.no_grad()
def _predict(detector: BaseModel, images: Tensor, watch: Stopwatch) -> None:
    size = tuple(images.shape[-2:])
    sizes = dict(
        img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)
    )
    samples = [BaseDataElement(metainfo=sizes) for _ in images]
    with _timed_encoder(detector, watch), watch.time(WHOLE):
        detector(images, samples, mode='predict')


@contextmanager
def _timed_encoder(detector: BaseModel, watch: Stopwatch) -> Iterator[None]:
    encode = detector.forward_encoder

    def timed(**inputs: Tensor) -> dict[str, Tensor]:
        with watch.time(ENCODER):
            return encode(**inputs)

    detector.forward_encoder = timed  # hides the method of the class
    try:
        yield
    finally:
        del detector.forward_encoder
