"""Layouts of the ResNets and Swin Transformers of official detectors."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from mmsparse.conversion.layout import (
    Entry,
    Rename,
    Weights,
    affine,
    batch_norm,
    compare,
    rename,
    size,
)

RESNETS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
SWINS = ((2, 2, 6, 2), (2, 2, 18, 2))
DETECTRON2 = (  # names of torchvision and mmdet to those of detectron2
    (r'^conv1\.', 'stem.conv1.'),
    (r'^bn1\.', 'stem.conv1.norm.'),
    (r'^layer(\d)', lambda found: f'res{int(found[1]) + 1}'),
    (r'\.bn(\d)\.', r'.conv\1.norm.'),
    (r'\.downsample\.0\.', '.shortcut.'),
    (r'\.downsample\.1\.', '.shortcut.norm.'),
)


@dataclass(frozen=True)
class HostBackbone:
    """A backbone of mmdet."""

    name: str  # for messages
    widths: tuple[int, ...]  # of all stages
    layout: list[Entry]


def find_backbone(weights: Weights, num_outputs: int) -> HostBackbone | None:
    """Return the ResNet or Swin Transformer that fits best; None for other models.

    The weights are named as in torchvision, detectron2 or the official Swin
    Transformer; the neck takes the last ``num_outputs`` stages.
    """
    for marker, candidates in (
        (r'(stem|res\d)\.', partial(_resnets, weights, DETECTRON2)),
        (r'(bn1|layer\d)\.', partial(_resnets, weights, ())),
        (r'(patch_embed|layers\.\d)\.', partial(_swins, weights, num_outputs)),
    ):
        if any(re.match(marker, name) for name in weights):
            return min(candidates(), key=lambda x: len(compare(weights, x.layout)))
    return None


def _resnets(weights: Weights, renames: Sequence[Rename]) -> list[HostBackbone]:
    width = size(weights, r'(stem\.)?conv1\.weight') or 64
    return [
        HostBackbone(
            f'ResNet-{depth}',
            resnet_widths(depth, width),
            [
                replace(x, official=rename(x.official, renames))
                for x in resnet(depth, width)
            ],
        )
        for depth in RESNETS
    ]


def resnet_widths(depth: int, width: int) -> tuple[int, ...]:
    """Return the channels of the four stages of a ResNet."""
    return tuple(_expansion(depth) * width * 2**i for i in range(4))


def _expansion(depth: int) -> int:
    return 4 if depth >= 50 else 1


def resnet(depth: int, width: int) -> list[Entry]:
    """List torchvision's ResNet of a depth, whose stem has ``width`` channels."""
    parts = [('conv1', 'bn1', (width, 3, 7, 7))]
    channels, expansion = width, _expansion(depth)
    for stage, blocks in enumerate(RESNETS[depth], start=1):
        for block in range(blocks):
            name, out = f'layer{stage}.{block}', expansion * width
            shapes = [(width, channels, 3, 3), (width, width, 3, 3)]
            if expansion > 1:
                shapes = [(width, channels, 1, 1), shapes[1], (out, width, 1, 1)]
            parts += [
                (f'{name}.conv{i}', f'{name}.bn{i}', shape)
                for i, shape in enumerate(shapes, start=1)
            ]
            if block == 0 and (stage > 1 or out != channels):
                shortcut = f'{name}.downsample.0', f'{name}.downsample.1'
                parts.append((*shortcut, (out, channels, 1, 1)))
            channels = out
        width *= 2
    return [
        entry
        for conv, norm, shape in parts
        for entry in affine(conv, conv, shape, bias=False) + batch_norm(norm, shape[0])
    ]


def _swins(weights: Weights, num_outputs: int) -> list[HostBackbone]:
    width = size(weights, r'patch_embed\..*(weight|bias)')
    return [
        HostBackbone(
            f'Swin of {", ".join(map(str, depths))} blocks and width {width}',
            (width, 2 * width, 4 * width, 8 * width),
            _swin(weights, depths, width, num_outputs),
        )
        for depths in SWINS
    ]


def _swin(
    weights: Weights, depths: Sequence[int], channels: int, num_outputs: int
) -> list[Entry]:
    layout = [
        *affine('patch_embed.proj', 'patch_embed.projection', (channels, 3, 4, 4)),
        *affine('patch_embed.norm', 'patch_embed.norm', (channels,)),
    ]
    for stage, depth in enumerate(depths):
        for block in range(depth):
            names = f'layers.{stage}.blocks.{block}', f'stages.{stage}.blocks.{block}'
            layout += _swin_block(weights, *names, channels)
        if stage >= len(depths) - num_outputs:
            layout += affine(f'norm{stage}', f'norm{stage}', (channels,))
        if stage < len(depths) - 1:
            layout += _patch_merging(stage, channels)
            channels *= 2
    return layout


def _swin_block(
    weights: Weights, official: str, key: str, channels: int
) -> list[Entry]:
    attention, msa = f'{official}.attn', f'{key}.attn.w_msa'
    table, index = 'relative_position_bias_table', 'relative_position_index'
    stage = re.escape(official.rpartition('.')[0])
    heads = size(weights, rf'{stage}\.\d+\.attn\.{table}', axis=1)
    distances, tokens = (size(weights, rf'.*\.{name}') for name in (table, index))
    return [
        *affine(f'{official}.norm1', f'{key}.norm1', (channels,)),
        Entry(f'{attention}.{table}', f'{msa}.{table}', (distances, heads)),
        Entry(f'{attention}.{index}', f'{msa}.{index}', (tokens, tokens)),
        *affine(f'{attention}.qkv', f'{msa}.qkv', (3 * channels, channels)),
        *affine(f'{attention}.proj', f'{msa}.proj', (channels, channels)),
        *affine(f'{official}.norm2', f'{key}.norm2', (channels,)),
        *affine(
            f'{official}.mlp.fc1', f'{key}.ffn.layers.0.0', (4 * channels, channels)
        ),
        *affine(f'{official}.mlp.fc2', f'{key}.ffn.layers.1', (channels, 4 * channels)),
    ]


def _patch_merging(stage: int, channels: int) -> list[Entry]:
    official, key = f'layers.{stage}.downsample', f'stages.{stage}.downsample'
    norm, reduction = (4 * channels,), (2 * channels, 4 * channels)
    convert = _channels_before_pixels
    return [
        *affine(f'{official}.norm', f'{key}.norm', norm, convert=convert),
        *affine(f'{official}.reduction', f'{key}.reduction', reduction, False, convert),
    ]


def _channels_before_pixels(tensor: Tensor) -> Tensor:
    """Reorder 4 * C inputs from (column, row, channel) to (channel, row, column)."""
    return tensor.unflatten(-1, (2, 2, -1)).transpose(-3, -1).flatten(-3)
