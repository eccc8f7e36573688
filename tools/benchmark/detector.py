"""Focus-DETR beside the DINO of the same parts."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from math import ceil
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from benchmark.timing import Candidate, Stopwatch
from mmsparse.apis import build_model
from mmsparse.errors import UsageError

ENCODER, WHOLE = 'encoder', 'whole model'
# Arguments that mmdet's DINO does not have.
FOCUS_OPTIONS = (
    'keep_ratio',
    'cascade',
    'num_object_tokens',
    'value_source',
    'object_score',
    'per_image',
    'global_pool',
    'score_border',
)
GROUPS = 32  # of the neck's normalization
STRIDES = (8, 16, 32, 64)


def detector_candidates(
    cfg: Config,
    keep_ratios: Sequence[float],
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
) -> list[Candidate]:
    """Prepare DINO and Focus-DETR, with random weights, for pictures of noise.

    The part called encoder is all from the flattened maps to the memory; of Focus-DETR
    that is the selection of tokens, too.

    Args:
        cfg: Config of a Focus-DETR.
        keep_ratios: Mean parts of the tokens that the encoder's layers keep, as the
            paper counts them, in (0, mean of the cascade]; one Focus-DETR for each.
        size: Height and width of the pictures.
        batch_size: Number of pictures.
        device: Where to compute.

    Returns:
        DINO, then the others.

    Raises:
        ValueError: A ratio is out of range, or pictures have fewer tokens than DINO
            has queries.
        UsageError: The config is not of a Focus-DETR.
    """
    _check_size(cfg, size)
    pictures = torch.randn(
        batch_size, 3, *size, generator=torch.Generator().manual_seed(0)
    ).to(device)
    configs = {'DINO': dino_twin(cfg)}
    for ratio in keep_ratios:
        configs[f'Focus-DETR {ratio:g}'] = keeping(cfg, ratio)
    return [
        Candidate(name, partial(_predict, _build(settings).to(device), pictures))
        for name, settings in configs.items()
    ]


def dino_twin(cfg: Config) -> Config:
    """Take from a Focus-DETR what mmdet's DINO does not have.

    Args:
        cfg: Its config, which stays as it is.

    Returns:
        That of the DINO.

    Raises:
        UsageError: The config is not of a Focus-DETR.
    """
    found = cfg.get('model', {}).get('type')
    if found != 'mmsparse.FocusDETR':
        raise UsageError(f'model.type must be mmsparse.FocusDETR; got {found}.')
    cfg = copy.deepcopy(cfg)
    for name in FOCUS_OPTIONS:
        cfg.model.pop(name, None)
    cfg.model.type, cfg.model.bbox_head.type = 'DINO', 'DINOHead'
    cfg.model.bbox_head.pop('loss_foreground', None)
    return cfg


def keeping(cfg: Config, ratio: float) -> Config:
    """Set the mean part of the tokens that the layers of the encoder keep.

    Args:
        cfg: Config of a Focus-DETR, which stays as it is.
        ratio: The part, in (0, mean of the cascade].

    Returns:
        Another config.

    Raises:
        ValueError: The ratio is out of range.
    """
    cascade = cfg.model.get('cascade', (1.0, 0.8, 0.6, 0.6, 0.4, 0.2))
    most = sum(cascade) / len(cascade)
    if not 0 < ratio <= most:
        raise ValueError(
            f'A keep ratio must be in (0, {most:g}], the mean of cascade='
            f'{tuple(cascade)}; got {ratio}.'
        )
    cfg = copy.deepcopy(cfg)
    cfg.model.keep_ratio = ratio / most
    return cfg


def set_width(cfg: Config, width: int) -> None:
    """Give the transformer of a DINO or Focus-DETR another width.

    Args:
        cfg: Its config, which is changed.
        width: Number of channels, a multiple of 32.

    Raises:
        ValueError: The width is not such a number.
    """
    if width < 1 or width % GROUPS:
        raise ValueError(f'width must be a multiple of {GROUPS}; got {width}.')
    model = cfg.model
    layers = (model.encoder.layer_cfg, model.decoder.layer_cfg)
    for part in (part for layer in layers for part in layer.values()):
        part.embed_dims = width
    model.neck.out_channels = model.bbox_head.embed_dims = width
    model.positional_encoding.num_feats = width // 2


def _check_size(cfg: Config, size: tuple[int, int]) -> None:
    """Mmdet's DINO fails without a word on pictures that are too small."""
    head = cfg.model.get('bbox_head', {})
    strides = head.get('loss_foreground', {}).get('strides', STRIDES)
    tokens = sum(ceil(size[0] / x) * ceil(size[1] / x) for x in strides)
    queries = cfg.model.get('num_queries', 0)
    if tokens < queries:
        raise ValueError(
            f'Pictures of {size[0]}x{size[1]} have {tokens} tokens, fewer than '
            f'num_queries={queries}; enlarge them or lower model.num_queries.'
        )


def _build(cfg: Config) -> BaseModel:
    detector = build_model(cfg)
    nn.init.normal_(detector.level_embed)  # mmdet leaves it as memory was
    detector.eval()
    return detector


@torch.no_grad()
def _predict(detector: BaseModel, pictures: Tensor, watch: Stopwatch) -> None:
    size = tuple(pictures.shape[-2:])
    sizes = dict(
        img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)
    )
    samples = [BaseDataElement(metainfo=sizes) for _ in pictures]
    encoding = _encoding_at_width(detector.embed_dims)
    with encoding, _timed_encoder(detector, watch), watch.time(WHOLE):
        detector(pictures, samples, mode='predict')


@contextmanager
def _timed_encoder(detector: BaseModel, watch: Stopwatch) -> Iterator[None]:
    encode = detector.forward_encoder

    def timed(**inputs: Tensor) -> dict[str, Tensor]:
        with watch.time(ENCODER):
            return encode(**inputs)

    with mock.patch.object(detector, 'forward_encoder', timed):
        yield


def _encoding_at_width(width: int) -> mock._patch:
    """Let mmdet 3.3's DINO have other widths than 256, which it encodes boxes for."""
    layers = import_module('mmdet.models.layers.transformer.dino_layers')
    encode = partial(layers.coordinate_to_encoding, num_feats=width // 2)
    return mock.patch.object(layers, 'coordinate_to_encoding', encode)
