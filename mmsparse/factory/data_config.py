"""Images that a classifier expects: timm's ``pretrained_cfg``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from mmsparse.models.backbones.arch import Arch

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
CLASSES = 1000  # of ImageNet
CROP = 224 / 256  # of the papers


def default_data(arch: Arch, crop_mode: str, channels: int = 3) -> dict[str, Any]:
    """Return the images of the papers' evaluation on ImageNet.

    Args:
        arch: Settings of the backbone.
        crop_mode: That of the backbone.
        channels: Channels of the images.

    Returns:
        Entries of ``pretrained_cfg``: ``input_size``, ``mean``, ``std``,
        ``interpolation``, ``crop_pct`` and ``crop_mode``, values of timm's
        ``create_transform``.
    """
    side = getattr(arch, 'img_size', 224)
    data = dict(
        input_size=(channels, side, side),
        interpolation='bicubic',
        crop_pct=CROP,
        crop_mode=crop_mode,
    )
    return data | {key: adapt_channels(x, channels) for key, x in IMAGENET.items()}


def evaluation_data(
    config: Mapping[str, Any], dataset_meta: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the images that a config of mmpretrain evaluates.

    Args:
        config: Settings of the config.
        dataset_meta: The data set's metadata, with ``classes``.

    Returns:
        Entries of ``pretrained_cfg``, as far as the config has plain ones.
    """
    data = {}
    preprocessor = config.get('data_preprocessor')
    if isinstance(preprocessor, Mapping):
        for key in ('mean', 'std'):
            values = preprocessor.get(key)
            if isinstance(values, Sequence) and values:
                data[key] = tuple(float(x) / 255 for x in values)
    data |= _size(list(_transforms(config.get('test_pipeline'))))
    classes = dataset_meta.get('classes') if isinstance(dataset_meta, Mapping) else None
    if isinstance(classes, (list, tuple)):
        data['label_names'] = tuple(map(str, classes))
    return data


def adapt_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Return a mean or standard deviation of RGB images for other channels.

    Args:
        values: One per channel.
        channels: Number of channels.

    Returns:
        The values, or their average for each of the channels.
    """
    if len(values) == channels:
        return tuple(values)
    return (sum(values) / len(values),) * channels


def describe_layers(model: nn.Module) -> dict[str, Any]:
    """Return the names of the first convolution and of the classifier, as timm has."""
    convs = (name for name, x in model.named_modules() if isinstance(x, nn.Conv2d))
    return dict(first_conv=next(convs), classifier='head.fc')


def _transforms(pipeline: Any) -> Iterator[Mapping[str, Any]]:
    for transform in pipeline if isinstance(pipeline, list) else ():
        if isinstance(transform, Mapping):
            yield transform


def _size(transforms: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return size, crop and interpolation of resizing, cropping or both."""
    named = {str(x.get('type')).rpartition('.')[2]: x for x in transforms}
    resize = named.get('Resize') or named.get('ResizeEdge')
    if resize is None:
        return {}
    scale = _side(resize.get('scale'))
    crop = _side(named.get('CenterCrop', resize).get('crop_size', scale))
    if not scale or not crop:
        return {}
    return dict(
        input_size=(3, crop, crop),
        crop_pct=crop / scale,
        crop_mode='squash' if 'Resize' in named else 'center',
        interpolation=resize.get('interpolation', 'bilinear'),
    )


def _side(size: Any) -> int | None:
    """Return the side of a square, given as a number or twice; None for others."""
    sides = set(size) if isinstance(size, (list, tuple)) else {size}
    side = sides.pop() if len(sides) == 1 else None
    return side if isinstance(side, int) else None
