"""Layout of necks and heads, whose keys are the same in mmseg 0.x and 1.x."""

import re
from collections.abc import Sequence

from torch import Tensor

from mmsparse.checkpoint.state_dict import join_keys
from mmsparse.conversion.layout import (
    Entry,
    Weights,
    affine,
    batch_norm,
    compare,
    count,
    size,
    translate,
)

HEAD, AUXILIARY = 'decode_head.', 'auxiliary_head.'


def convert_heads(weights: Weights, widths: Sequence[int]) -> dict[str, Tensor]:
    """Check neck and heads of an official segmentor, and return them.

    Supported are a neck ``FPN`` with an ``FPNHead``, and a ``UPerHead``, each with or
    without an auxiliary ``FCNHead``. Others raise ValueError, as do keys that do not
    fit a backbone with feature maps of these ``widths``.
    """
    found = [part for part in _HEADS if any(part in key for key in weights)]
    if len(found) != 1:
        keys = [key for key in weights if key.startswith(HEAD)]
        raise ValueError(
            f'The decode_head of a segmentor must be an FPNHead or a UPerHead; got '
            f'{join_keys(keys)}. backbone_only drops it.'
        )
    entries = _HEADS[found[0]](weights, widths)
    if any(name.startswith(AUXILIARY) for name in weights):
        entries += _fcn_head(weights, widths)
    if mismatch := compare(weights, entries):
        raise ValueError(
            f'Neck and heads of the segmentor do not fit: {mismatch}. backbone_only '
            f'drops them.'
        )
    return translate(weights, entries)


def _semantic_fpn(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    inner = size(weights, r'neck\..*\.conv\.weight')
    channels = size(weights, r'decode_head\.scale_heads\..*\.conv\.weight')
    entries = _classifier(weights, HEAD, channels)
    for i, width in enumerate(widths):
        entries += _affine(f'neck.lateral_convs.{i}.conv', (inner, width, 1, 1))
        entries += _affine(f'neck.fpn_convs.{i}.conv', (inner, inner, 3, 3))
        for j in range(max(i, 1)):  # one for each upsampling by 2
            name = f'{HEAD}scale_heads.{i}.{2 * j}'
            entries += _conv_norm(name, channels, channels if j else inner, 3)
    return entries


def _uper_head(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = size(weights, r'decode_head\.lateral_convs\..*\.conv\.weight')
    scales = count(weights, r'decode_head\.psp_modules\.(\d+)\.')
    entries = _classifier(weights, HEAD, channels)
    for i in range(scales):
        entries += _conv_norm(f'{HEAD}psp_modules.{i}.1', channels, widths[-1], 1)
    for i, width in enumerate(widths[:-1]):
        entries += _conv_norm(f'{HEAD}lateral_convs.{i}', channels, width, 1)
        entries += _conv_norm(f'{HEAD}fpn_convs.{i}', channels, channels, 3)
    pooled, levels = widths[-1] + scales * channels, len(widths) * channels
    entries += _conv_norm(f'{HEAD}bottleneck', channels, pooled, 3)
    return [*entries, *_conv_norm(f'{HEAD}fpn_bottleneck', channels, levels, 3)]


def _fcn_head(weights: Weights, widths: Sequence[int]) -> list[Entry]:
    channels = size(weights, r'auxiliary_head\.convs\..*\.conv\.weight')
    entries = _classifier(weights, AUXILIARY, channels)
    # On the third feature map in all releases; for another, the size mismatches.
    return [*entries, *_conv_norm(f'{AUXILIARY}convs.0', channels, widths[2], 3)]


def _classifier(weights: Weights, head: str, channels: int) -> list[Entry]:
    classes = size(weights, rf'{re.escape(head)}conv_seg\.(weight|bias)')
    return _affine(f'{head}conv_seg', (classes, channels, 1, 1))


def _conv_norm(name: str, out: int, width: int, kernel: int) -> list[Entry]:
    """A convolution without bias and its BatchNorm."""
    conv = _affine(f'{name}.conv', (out, width, kernel, kernel), bias=False)
    return conv + batch_norm(f'{name}.bn', out)


def _affine(name: str, shape: tuple[int, ...], bias: bool = True) -> list[Entry]:
    return affine(name, name, shape, bias)


# By a part of the keys that only this head has.
_HEADS = {
    f'{HEAD}scale_heads.': _semantic_fpn,
    f'{HEAD}psp_modules.': _uper_head,
}
