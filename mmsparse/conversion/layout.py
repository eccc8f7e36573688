"""Layouts: every tensor of an official model, with its key in mmdet or mmseg.

A layout is built for the sizes that the weights show. It renames their keys, and finds
keys that are missing, unexpected or of another size. Throughout, ``official`` is the
official name of a tensor or module, and ``key`` its name in mmdet or mmseg.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from mmsparse.checkpoint.state_dict import Mismatch, state_dict_mismatch

Weights = Mapping[str, Tensor]
Convert = Callable[[Tensor], Tensor]
Rename = tuple[str, str | Callable[[re.Match], str]]  # regular expression, replacement


def same(tensor: Tensor) -> Tensor:
    """Return the tensor unchanged."""
    return tensor


@dataclass(frozen=True)
class Entry:
    """One tensor."""

    official: str
    key: str
    shape: tuple[int, ...]  # official
    convert: Convert = same  # from the official tensor to that of mmdet or mmseg


def rename(key: str, renames: Iterable[Rename]) -> str:
    """Replace patterns in a key by what they stand for, one after the other."""
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def translate(weights: Weights, layout: Collection[Entry]) -> dict[str, Tensor]:
    """Return the state dict for mmdet or mmseg, of weights that fit the layout."""
    return {
        entry.key: entry.convert(weights[entry.official])
        for entry in layout
        if entry.official in weights  # counters of BatchNorm may be missing
    }


def compare(weights: Weights, layout: Collection[Entry]) -> Mismatch:
    """Compare official weights with a layout."""
    return state_dict_mismatch(weights, {x.official: x.shape for x in layout})


def affine(
    official: str,
    key: str,
    shape: tuple[int, ...],
    bias: bool = True,
    convert: Convert = same,
) -> list[Entry]:
    """List weight (of this shape) and bias of a linear layer, convolution or norm."""
    shapes = {'weight': shape, **({'bias': shape[:1]} if bias else {})}
    return [
        Entry(f'{official}.{name}', f'{key}.{name}', shape, convert)
        for name, shape in shapes.items()
    ]


def batch_norm(name: str, channels: int) -> list[Entry]:
    """List a BatchNorm that has the same name in mmdet or mmseg."""
    shapes = dict(running_mean=(channels,), running_var=(channels,))
    shapes['num_batches_tracked'] = ()  # missing for frozen norms
    buffers = [
        Entry(f'{name}.{x}', f'{name}.{x}', shape) for x, shape in shapes.items()
    ]
    return affine(name, name, (channels,)) + buffers


def deformable_attention(
    official: str, key: str, channels: int, points: int
) -> list[Entry]:
    """List multi-scale deformable attention with points over all heads and levels."""
    rows = dict(
        sampling_offsets=2 * points,
        attention_weights=points,
        value_proj=channels,
        output_proj=channels,
    )
    return [
        entry
        for part, out in rows.items()
        for entry in affine(f'{official}.{part}', f'{key}.{part}', (out, channels))
    ]


def self_attention(official: str, key: str, channels: int) -> list[Entry]:
    """List torch's ``MultiheadAttention``."""
    shapes = dict(weight=(3 * channels, channels), bias=(3 * channels,))
    return [
        *affine(f'{official}.out_proj', f'{key}.out_proj', (channels, channels)),
        *(
            Entry(f'{official}.in_proj_{x}', f'{key}.in_proj_{x}', shape)
            for x, shape in shapes.items()
        ),
    ]


def neck(
    levels: Sequence[tuple[str, str]], widths: Sequence[int], channels: int
) -> list[Entry]:
    """List mmdet's ``ChannelMapper`` with biases and GroupNorm.

    ``levels`` has the official names of the convolution and norm of every level: first
    one for each feature map of the backbone, of ``widths``, then extra levels, each
    computed from the one before it, the first from the last feature map.
    """
    layout = []
    for i, (conv, norm) in enumerate(levels):
        extra = i - len(widths)
        key = f'neck.convs.{i}' if extra < 0 else f'neck.extra_convs.{extra}'
        kernel = (1, 1) if extra < 0 else (3, 3)
        inputs = (*widths, *widths[-1:])[i] if extra <= 0 else channels
        layout += affine(conv, f'{key}.conv', (channels, inputs, *kernel))
        layout += affine(norm, f'{key}.gn', (channels,))
    return layout


def heads(classes: int, channels: int, convert: Sequence[Convert]) -> list[Entry]:
    """List heads of one linear layer for classes and three for boxes.

    ``convert`` has a function to the rows of mmdet's classification head for each head.
    """
    layout = []
    for i, rows in enumerate(convert):
        names = f'class_embed.{i}', f'bbox_head.cls_branches.{i}'
        layout += affine(*names, (classes, channels), convert=rows)
        for j, out in enumerate((channels, channels, 4)):
            key = f'bbox_head.reg_branches.{i}.{2 * j}'
            layout += affine(f'bbox_embed.{i}.layers.{j}', key, (out, channels))
    return layout


def below(official: str, key: str, entries: Collection[Entry]) -> list[Entry]:
    """Prepend a prefix to the official names, and one to the keys, of entries."""
    return [
        replace(x, official=official + x.official, key=key + x.key) for x in entries
    ]


def transformer_layers(
    weights: Weights, part: str, channels: int, names: Mapping[str, str]
) -> list[Entry]:
    """List all layers of the ``encoder`` or ``decoder``.

    ``names`` has the official name of every module of a layer, by its name in mmdet.
    """
    suffix = r'\.(weight|bias)'
    hidden = size(weights, rf'transformer\..*\.{names["ffn.layers.0.0"]}{suffix}')
    points = size(weights, rf'.*\.{part}\..*\.attention_weights{suffix}')
    shapes = {'ffn.layers.0.0': (hidden, channels), 'ffn.layers.1': (channels, hidden)}
    layer = []
    for key, official in names.items():
        if key.endswith('.attn'):
            layer += self_attention(official, key, channels)
        elif key.endswith('attn'):
            layer += deformable_attention(official, key, channels, points)
        else:
            layer += affine(official, key, shapes.get(key, (channels,)))
    return [
        entry
        for i in range(num_layers(weights, part))
        for entry in below(
            f'transformer.{part}.layers.{i}.', f'{part}.layers.{i}.', layer
        )
    ]


def num_layers(weights: Weights, part: str) -> int:
    """Return the number of layers of the ``encoder`` or ``decoder``."""
    return count(weights, rf'transformer\.{part}\.layers\.(\d+)\.')


def size(weights: Weights, pattern: str, axis: int = 0) -> int:
    """Return the most frequent size along an axis of the tensors with such names."""
    found = Counter(
        tensor.shape[axis]
        for name, tensor in weights.items()
        if re.fullmatch(pattern, name) and tensor.ndim > axis
    )
    return found.most_common(1)[0][0] if found else 0


def count(names: Collection[str], pattern: str) -> int:
    """Return the length of a list of modules, the indices being the first group."""
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
