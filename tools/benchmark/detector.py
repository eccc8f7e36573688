"""Detectors: Focus-DETR and mmdet's DINO with the same modules; any list of configs."""

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch
import yaml
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from benchmark.timing import Candidate, Stopwatch
from mmsparse.analysis.flops import measure as measure_cost
from mmsparse.apis import build_model, read_config
from mmsparse.errors import UsageError
from mmsparse.zoo import find_config

ENCODER, WHOLE = 'encoder', 'whole model'
# Parts of detection transformers, and the methods that run them.
PARTS = {
    'backbone': ('extract_feat',),
    ENCODER: ('forward_encoder',),
    'decoder': ('pre_decoder', 'forward_decoder'),
}
# The modules whose MACs count for these parts; projections and heads of the methods
# above do not.
MODULES = {
    'backbone': ('backbone', 'neck'),
    ENCODER: ('encoder', 'token_selector'),
    'decoder': ('decoder',),
}
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
    images = _noise(batch_size, size, device)
    configs = {'DINO': to_dino(cfg)}
    for ratio in keep_ratios:
        configs[f'Focus-DETR {ratio:g}'] = with_keep_ratio(cfg, ratio)
    return [
        Candidate(
            name,
            partial(
                _predict,
                _build(settings).to(device),
                images,
                parts={ENCODER: PARTS[ENCODER]},
            ),
        )
        for name, settings in configs.items()
    ]


def _noise(batch_size: int, size: tuple[int, int], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch_size, 3, *size, generator=generator).to(device)


def config_candidates(
    paths: Sequence[str],
    options: dict[str, Any] | None,
    size: tuple[int, int],
    batch_size: int,
    device: torch.device,
) -> tuple[list[Candidate], dict[str, dict[str, str]]]:
    """Prepare the detection transformers of configs, as above.

    Args:
        paths: Configs of mmsparse by file or name, those of mmdet as ``mmdet::PATH``.
        options: Settings to change in all of them, by dotted key.
        size: Height and width of the images.
        batch_size: Number of images.
        device: Device of the runs.

    Returns:
        One candidate for each config, and by its name parameters, GMACs for one image
        and published box AP.

    Raises:
        UsageError: A config is not of a detection transformer with an encoder, or two
            have the same file name, by which they are reported.
    """
    found = [_find_config(path) for path in paths]
    names = [path.stem for path in found]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UsageError(
            'configs must have different file names, which are those of the results; '
            f'several are named {", ".join(sorted(repeated))}: rename copies'
        )
    images = _noise(batch_size, size, device)
    candidates, costs = [], {}
    for path in found:
        cfg = read_config(str(path), options)
        detector = _build(cfg)
        _check_parts(path, detector)
        costs[path.stem] = {**_cost(detector, size), 'box AP': published_ap(path)}
        run = partial(_predict, detector.to(device), images, parts=PARTS)
        candidates.append(Candidate(path.stem, run))
    return candidates, costs


def _find_config(path: str) -> Path:
    if path.startswith('mmdet::'):
        import mmdet

        folder = Path(mmdet.__file__).parent / '.mim' / 'configs'
        return folder / path.removeprefix('mmdet::')
    return Path(path) if Path(path).is_file() else find_config(path)


def _check_parts(path: Path, detector: BaseModel) -> None:
    missing = [x for names in PARTS.values() for x in names if not hasattr(detector, x)]
    if missing:
        raise UsageError(
            f'{path.stem}: model must be a detection transformer of mmdet; got '
            f'{type(detector).__name__} without {", ".join(missing)}.'
        )


def _cost(detector: BaseModel, size: tuple[int, int]) -> dict[str, str]:
    """Return parameters and GMACs of the parts, without heads that only losses need."""
    *parts, total = measure_cost(detector, size)
    macs = {part.name: part.macs or 0 for part in parts}
    return {
        'params (M)': f'{total.parameters / 1e6:.2f}',
        'GMACs': f'{total.macs / 1e9:.1f}',
        **{
            part: f'{sum(macs.get(name, 0) for name in names) / 1e9:.1f}'
            for part, names in MODULES.items()
        },
    }


def published_ap(path: Path) -> str:
    """Return box AP and its source from the metafile next to a config; '-' for none."""
    metafile = path.parent / 'metafile.yml'
    models = yaml.safe_load(metafile.read_text()) if metafile.is_file() else {}
    for model in models.get('Models', ()):
        if Path(model['Config']).name != path.name:
            continue
        for result in model.get('Results', ()):
            if 'box AP' in result.get('Metrics', {}):
                source = result.get('Source', "mmdet's metafile")
                return f'{result["Metrics"]["box AP"]} ({source})'
    return '-'


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
    from mmsparse.models.detectors import FocusedTransformer, SelectiveTransformer

    cfg = copy.deepcopy(cfg)
    for mixin in (FocusedTransformer, SelectiveTransformer):
        for name in inspect.signature(mixin).parameters:
            cfg.model.pop(name, None)
    cfg.model.type, cfg.model.bbox_head.type = 'DINO', 'DINOHead'
    for loss in ('loss_foreground', 'loss_dam'):
        cfg.model.bbox_head.pop(loss, None)
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
    strides = (head.get('loss_foreground') or {}).get('strides', STRIDES)
    tokens = sum(ceil(size[0] / x) * ceil(size[1] / x) for x in strides)
    queries = cfg.model.get('num_queries', 0)
    if tokens < queries:
        raise ValueError(
            f'Images of {size[0]}x{size[1]} have {tokens} tokens, fewer than '
            f'num_queries={queries}; enlarge them or lower model.num_queries.'
        )


def _build(cfg: Config) -> BaseModel:
    detector = build_model(cfg)
    if hasattr(detector, 'level_embed'):  # mmdet leaves it uninitialized
        nn.init.normal_(detector.level_embed)
    return detector.eval()


@torch.no_grad()
def _predict(
    detector: BaseModel,
    images: Tensor,
    watch: Stopwatch,
    parts: dict[str, Sequence[str]],
) -> None:
    size = tuple(images.shape[-2:])
    sizes = dict(
        img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)
    )
    samples = [BaseDataElement(metainfo=sizes) for _ in images]
    with _timed_parts(detector, watch, parts), watch.time(WHOLE):
        detector(images, samples, mode='predict')


@contextmanager
def _timed_parts(
    detector: BaseModel, watch: Stopwatch, parts: dict[str, Sequence[str]]
) -> Iterator[None]:
    """Time methods of a detector; attributes hide those of the class."""
    methods = [(part, name) for part, names in parts.items() for name in names]
    for part, name in methods:
        setattr(detector, name, partial(_timed, watch, part, getattr(detector, name)))
    try:
        yield
    finally:
        for _, name in methods:
            delattr(detector, name)


def _timed(
    watch: Stopwatch, part: str, method: Callable, *args: Any, **inputs: Any
) -> Any:
    with watch.time(part):
        return method(*args, **inputs)
