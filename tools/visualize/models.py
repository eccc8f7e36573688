"""Read the models of a comparison from the command line, and record them."""

import argparse
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import MMLogger
from PIL import Image, ImageOps
from torch import nn

from mmsparse._logging import log_level
from mmsparse.apis import build_model, load_model, read_config
from mmsparse.apis.config import SUFFIXES
from mmsparse.checkpoint.state_dict import load_state_dict, read_weights
from mmsparse.errors import UsageError
from mmsparse.visualization import (
    Sample,
    read_classes,
    read_pipeline,
    record_image,
    record_sample,
)

TIMM = 'timm:'  # prefix of the names of its models
SETTINGS = re.compile(r'_\d+xb\d+.*')  # of a training, at the end of a config's name
IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
USAGE = (
    '--compare takes CONFIG CHECKPOINT for every model, where CONFIG may be '
    'timm:NAME and CHECKPOINT may be left out for random weights, and one IMAGE'
)


class Choice(NamedTuple):
    """A model to compare."""

    config: str  # file, or the name of a model of timm
    checkpoint: str | None = None  # random weights if None
    title: str = ''


def parse_models(arguments: Sequence[str]) -> tuple[list[Choice], str]:
    """Split the arguments of a comparison into models and the image.

    UsageError is raised if there are fewer than two models, a checkpoint has no config,
    or no image is last.
    """
    *arguments, image = arguments
    if _is_config(image):
        raise UsageError(f'{USAGE}; got no image, but {image} as the last argument')
    choices: list[Choice] = []
    for text in arguments:
        if _is_config(text):
            choices.append(Choice(text))
        elif choices and choices[-1].checkpoint is None and not _is_image(text):
            choices[-1] = choices[-1]._replace(checkpoint=text)
        else:
            raise UsageError(f'{USAGE}; got {text} without a config before it')
    if len(choices) < 2:
        raise UsageError(f'{USAGE}; got {len(choices)} model, at least 2 are needed')
    return list(_with_titles(choices)), image


def _is_config(text: str) -> bool:
    return text.startswith(TIMM) or text.endswith(SUFFIXES) or not Path(text).suffix


def _is_image(text: str) -> bool:
    return text.lower().endswith(IMAGES)


def _with_titles(choices: Sequence[Choice]) -> Iterator[Choice]:
    """Name models by their config, or by the checkpoint where configs are the same."""
    configs = Counter(choice.config for choice in choices)
    for choice in choices:
        name = SETTINGS.sub('', Path(choice.config.removeprefix(TIMM)).stem)
        title = name.replace('_', ' ')
        if choice.checkpoint is None:
            title += '\nrandom weights'
        elif configs[choice.config] > 1:
            title += f'\n{Path(choice.checkpoint).stem}'
        yield choice._replace(title=title)


def record(
    choice: Choice, image: str, args: argparse.Namespace
) -> tuple[nn.Module, Sample]:
    """Build a model and record it on an image file; ``args`` are of the command.

    For errors, see :func:`mmsparse.apis.load_model`; UsageError names a model without
    attention that can be recorded.
    """
    try:
        if choice.config.startswith(TIMM):
            return _record_timm(choice, image, args.device)
        cfg = read_config(choice.config, args.cfg_options)
        model = _build(cfg, choice.checkpoint, args.device)
        transforms = read_pipeline(cfg)
        names, _ = read_classes(cfg, choice.checkpoint)
        return model, record_sample(model, transforms, image, names, args.score_thr)
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f'{choice.config}: {error}') from error


def _build(cfg: Any, checkpoint: str | None, device: str) -> nn.Module:
    if checkpoint is not None:
        return load_model(cfg, checkpoint, device)
    model = build_model(cfg)
    for part in model.modules():
        settings = getattr(part, 'init_cfg', None)
        if isinstance(settings, dict) and 'checkpoint' in settings:
            part.init_cfg = None
    # mmengine would log every parameter, and backbones that they have no weights.
    with log_level(MMLogger.get_current_instance(), logging.ERROR):
        model.init_weights()
    return model.to(device).eval()


def _record_timm(choice: Choice, path: str, device: str) -> tuple[nn.Module, Sample]:
    try:
        import timm
    except ImportError as error:
        raise UsageError(f'{choice.config}: pip install timm first') from error
    name = choice.config.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UsageError(f'{choice.config}: timm {timm.__version__} has no such model')
    model = timm.create_model(name, pretrained=False)
    if choice.checkpoint is not None:
        weights = read_weights(choice.checkpoint)
        if mismatch := load_state_dict(model, weights):
            raise UsageError(f'{choice.checkpoint} does not fit {name}; {mismatch}')
    with Image.open(path) as image:
        pixels = np.array(ImageOps.exif_transpose(image).convert('RGB'))
    size = tuple(model.pretrained_cfg['input_size'][1:])
    return model, record_image(model.to(device).eval(), pixels, size)
