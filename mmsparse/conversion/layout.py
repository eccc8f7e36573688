"""Layouts: every tensor of an official model, its name there, the host's, its shape.

A layout is made for the sizes that the weights show. It translates their names, and
tells what is missing, left over or of another shape.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

Weights = Mapping[str, Tensor]


def same(tensor: Tensor) -> Tensor:
    """Leave a tensor as it is.

    Args:
        tensor: The tensor.

    Returns:
        The same one.
    """
    return tensor


@dataclass(frozen=True)
class Entry:
    """One tensor.

    Args:
        official: Its name in the official state dict.
        ours: Its name in the host's.
        shape: Its shape in the official state dict.
        convert: The official tensor to the host's.
    """

    official: str
    ours: str
    shape: tuple[int, ...]
    convert: Callable[[Tensor], Tensor] = same


def affine(
    official: str,
    ours: str,
    shape: tuple[int, ...],
    bias: bool = True,
    convert: Callable[[Tensor], Tensor] = same,
) -> list[Entry]:
    """List weight and bias of a linear map, a convolution or a norm.

    Args:
        official: Official name of the module.
        ours: The host's.
        shape: Shape of the weight; a bias has its first size.
        bias: Whether there is one.
        convert: The official tensors to the host's.

    Returns:
        One or two entries.
    """
    shapes = {'weight': shape, **({'bias': shape[:1]} if bias else {})}
    return [
        Entry(f'{official}.{name}', f'{ours}.{name}', shape, convert)
        for name, shape in shapes.items()
    ]


def deformable_attention(
    official: str, ours: str, channels: int, points: int
) -> list[Entry]:
    """List the weights of multi-scale deformable attention.

    Args:
        official: Official name of the module.
        ours: The host's.
        channels: Its width.
        points: Number of points of a query in all heads and levels.

    Returns:
        The entries; within the module both have the same names.
    """
    rows = dict(
        sampling_offsets=2 * points,
        attention_weights=points,
        value_proj=channels,
        output_proj=channels,
    )
    return [
        entry
        for part, out in rows.items()
        for entry in affine(f'{official}.{part}', f'{ours}.{part}', (out, channels))
    ]


def self_attention(official: str, ours: str, channels: int) -> list[Entry]:
    """List the weights of torch's attention, queries, keys and values in one matrix.

    Args:
        official: Official name of torch's module.
        ours: The host's.
        channels: Its width.

    Returns:
        The entries.
    """
    shapes = {
        'in_proj_weight': (3 * channels, channels),
        'in_proj_bias': (3 * channels,),
    }
    return [
        *(
            Entry(f'{official}.{x}', f'{ours}.{x}', shape)
            for x, shape in shapes.items()
        ),
        *affine(f'{official}.out_proj', f'{ours}.out_proj', (channels, channels)),
    ]


def neck(
    levels: Sequence[tuple[str, str]], widths: Sequence[int], channels: int
) -> list[Entry]:
    """List the weights that bring the backbone's maps to one width.

    Args:
        levels: Official names of convolution and norm of every level. Each of the
            backbone's maps has one; each of the others is made of the one before it,
            the first of those of the backbone's last map.
        widths: Widths of the backbone's maps.
        channels: The common width.

    Returns:
        The entries of mmdet's ``ChannelMapper`` with biases and GroupNorm.
    """
    layout = []
    for i, (conv, norm) in enumerate(levels):
        extra = i - len(widths)
        ours = f'neck.convs.{i}' if extra < 0 else f'neck.extra_convs.{extra}'
        kernel = (1, 1) if extra < 0 else (3, 3)
        inputs = (*widths, *widths[-1:])[i] if extra <= 0 else channels
        layout += affine(conv, f'{ours}.conv', (channels, inputs, *kernel))
        layout += affine(norm, f'{ours}.gn', (channels,))
    return layout


def heads(
    classes: int, channels: int, convert: Sequence[Callable[[Tensor], Tensor]]
) -> list[Entry]:
    """List the weights of classification and box heads.

    Args:
        classes: Number of rows of the former.
        channels: Width of the transformer.
        convert: What makes the host's classification rows, for each head.

    Returns:
        The entries of a linear map, and of three with activations in between, a head.
    """
    layout = []
    for i, rows in enumerate(convert):
        names = f'class_embed.{i}', f'bbox_head.cls_branches.{i}'
        layout += affine(*names, (classes, channels), convert=rows)
        for j, out in enumerate((channels, channels, 4)):
            ours = f'bbox_head.reg_branches.{i}.{2 * j}'
            layout += affine(f'bbox_embed.{i}.layers.{j}', ours, (out, channels))
    return layout


def below(official: str, ours: str, entries: Collection[Entry]) -> list[Entry]:
    """Put entries below a module.

    Args:
        official: Official name of the module, with the dot behind it.
        ours: The host's, with the dot.
        entries: What is inside.

    Returns:
        The entries by their full names.
    """
    return [
        replace(x, official=official + x.official, ours=ours + x.ours) for x in entries
    ]


def repeated(
    weights: Weights, official: str, ours: str, entries: Collection[Entry]
) -> list[Entry]:
    """List the entries of equal modules, as many as there are.

    Args:
        weights: The official state dict.
        official: Official name of their list.
        ours: The host's.
        entries: What is inside one.

    Returns:
        The entries of all of them.
    """
    return [
        entry
        for i in range(count(weights, rf'{re.escape(official)}\.(\d+)\.'))
        for entry in below(f'{official}.{i}.', f'{ours}.{i}.', entries)
    ]


def size(weights: Weights, pattern: str, axis: int = 0) -> int:
    """Look a size up that several tensors share.

    Args:
        weights: The official state dict.
        pattern: Regular expression of their whole names.
        axis: Axis of the size.

    Returns:
        The size that most of them have; 0 if there are none.
    """
    found = Counter(
        tensor.shape[axis]
        for name, tensor in weights.items()
        if re.fullmatch(pattern, name) and tensor.ndim > axis
    )
    return found.most_common(1)[0][0] if found else 0


def count(names: Collection[str], pattern: str) -> int:
    """Count the modules of a list.

    Args:
        names: Official names.
        pattern: Regular expression of the start of theirs; the first group is a number.

    Returns:
        The highest number plus one; 0 if there are none.
    """
    found = [int(match[1]) for name in names if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def translate(weights: Weights, layout: Collection[Entry]) -> dict[str, Tensor]:
    """Bring weights into the host's state dict.

    Args:
        weights: The official state dict; it fits the layout.
        layout: The layout.

    Returns:
        The host's state dict.
    """
    return {entry.ours: entry.convert(weights[entry.official]) for entry in layout}


def faults(weights: Weights, layout: Collection[Entry]) -> dict[str, list[str]]:
    """List what keeps weights from fitting a layout.

    Args:
        weights: The official state dict.
        layout: The layout.

    Returns:
        Official names by kind of fault, sorted; empty if all fits.
    """
    shapes = {entry.official: entry.shape for entry in layout}
    found = {
        'missing': [name for name in shapes if name not in weights],
        'left over': [name for name in weights if name not in shapes],
        'of another shape': [
            f'{name} {tuple(tensor.shape)} instead of {shapes[name]}'
            for name, tensor in weights.items()
            if name in shapes and tensor.shape != shapes[name]
        ],
    }
    return {kind: sorted(names) for kind, names in found.items() if names}
