"""The attention patterns alone, over sizes of pictures, beside dense attention.

All have the map of a second stage, an eighth of the picture, 128 channels and 4 heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmark.backbone import FORWARD, TRAINING
from benchmark.timing import Candidate, Measurement, Stopwatch
from mmsparse import ops
from mmsparse.ops.attention import full_attention
from mmsparse.ops.routed import routed_attention

REFERENCE, FAST = 'reference', 'fast'
STRIDE, CHANNELS, HEADS = 8, 128, 4
REGION = 4  # tokens down and across, as BiFormer has at 224
LINES = {REFERENCE: ':', FAST: '-'}
COPIES = 4  # of its largest tensor that a definition holds at a time, about

Attend = Callable[[str], Tensor]


@dataclass(frozen=True)
class Pattern:
    """One attention pattern on one map.

    Args:
        attend: Computes it by a backend.
        inputs: What it is differentiated by.
        numbers: In the largest tensor of the definition, as its logits.
        for_gpus: Backends that are tried on a GPU, too.
    """

    attend: Attend
    inputs: tuple[Tensor, ...]
    numbers: int
    for_gpus: tuple[str, ...] = ()

    def backends(self, device: torch.device) -> dict[str, str]:
        """What is compared on a device, by name."""
        more = self.for_gpus if device.type == 'cuda' else ()
        return {REFERENCE: 'reference', FAST: 'auto'} | {name: name for name in more}


def operator_candidates(
    pixels: int, device: torch.device, limit: float, training: bool = True
) -> list[Candidate]:
    """Prepare every pattern, by its definition and by its fast path.

    Args:
        pixels: Side of the square picture, a multiple of 32.
        device: Where to compute.
        limit: Bytes that a definition may need for its largest tensor and its copies;
            what needs more is left out.
        training: Whether to go backward, too.

    Returns:
        Those that can be compared, dense attention first.

    Raises:
        ValueError: ``pixels`` is not such a multiple.
    """
    unit = STRIDE * REGION
    if pixels < unit or pixels % unit:
        raise ValueError(f'A size must be a multiple of {unit}; got {pixels}.')
    torch.manual_seed(0)
    candidates = []
    for name, pattern in _patterns(pixels // STRIDE, device):
        for kind, backend in pattern.backends(device).items():
            if kind == REFERENCE and 4 * COPIES * pattern.numbers > limit:
                continue
            run = partial(_run, pattern, backend, training)
            candidates.append(Candidate(f'{name}, {kind}', run))
    return candidates


def _patterns(side: int, device: torch.device) -> Iterator[tuple[str, Pattern]]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, requires_grad=True)

    tokens = side * side
    q, k, v = inputs = tuple(draw(1, side, side, CHANNELS) for _ in range(3))
    yield (
        'dense',
        Pattern(
            lambda backend: full_attention(q, k, v, HEADS, backend=backend),
            inputs,
            HEADS * tokens**2,
        ),
    )

    grid = (side // REGION, side // REGION)
    topk = min(4, grid[0] ** 2)
    routes = torch.rand(1, grid[0] ** 2, grid[0] ** 2, device=device).topk(topk)[1]

    def routed(backend: str) -> Tensor:
        return routed_attention(*inputs, routes, grid, HEADS, backend=backend)

    # Its gather passes back a gradient for every pair of regions.
    numbers = routes.shape[1] * tokens * CHANNELS
    yield 'routed', Pattern(routed, inputs, numbers, for_gpus=('triton',))

    few_k, few_v = (draw(1, side // 4, side // 4, CHANNELS) for _ in range(2))
    positions = 2 * torch.rand(1, 2, *few_k.shape[1:3], 2, device=device) - 1
    positions.requires_grad_()
    table = draw(HEADS, 55, 55)
    axis = torch.linspace(-1, 1, side, device=device)
    yield (
        'deformable',
        Pattern(
            lambda backend: ops.deformable_attention(
                q, few_k, few_v, positions, table, (axis, axis), backend
            ),
            (q, few_k, few_v, positions, table),
            HEADS * tokens * few_k.shape[1] ** 2,
        ),
    )

    near = draw(HEADS, 13, 13)
    yield (
        'neighborhood',
        Pattern(
            lambda backend: ops.neighborhood_attention(q, k, v, near, backend),
            (*inputs, near),
            tokens * 49 * CHANNELS,  # copies of the keys outweigh the logits
        ),
    )

    lengths = ((side // 4) ** 2, (side // 2) ** 2)
    keys, values = (
        [draw(1, length, CHANNELS // 2) for length in lengths] for _ in range(2)
    )
    yield (
        'shunted',
        Pattern(
            lambda backend: ops.shunted_attention(
                q.flatten(1, 2), keys, values, HEADS, backend=backend
            ),
            (q, *keys, *values),
            HEADS // 2 * tokens * sum(lengths),
        ),
    )


def _run(pattern: Pattern, backend: str, training: bool, watch: Stopwatch) -> None:
    with torch.no_grad(), watch.time(FORWARD):
        pattern.attend(backend)
    if training:
        with watch.time(TRAINING):
            torch.autograd.grad(pattern.attend(backend).sum(), pattern.inputs)


def plot_scaling(
    results: Mapping[int, Sequence[Measurement]], path: str | Path, title: str
) -> None:
    """Draw time and memory over the size of the picture, both axes logarithmic.

    Args:
        results: Side of the picture to its measurements.
        path: Where to write the picture.
        title: Of the whole.
    """
    from matplotlib.figure import Figure  # slow to import

    parts = list(next(iter(results.values()))[0].seconds)
    columns = {f'{part}, seconds': partial(_seconds, part) for part in parts}
    columns['peak memory, MiB'] = lambda row: row.peak_bytes / 2**20
    names = list(dict.fromkeys(row.name for rows in results.values() for row in rows))
    patterns = list(dict.fromkeys(name.partition(',')[0] for name in names))
    figure = Figure((4.2 * len(columns) + 2, 4.2), layout='constrained')
    axes = figure.subplots(1, len(columns))
    for axis, (label, value) in zip(axes, columns.items(), strict=True):
        for name in names:
            pattern, _, kind = name.partition(', ')
            heights = {
                pixels: value(row)
                for pixels, rows in results.items()
                for row in rows
                if row.name == name
            }
            axis.loglog(
                list(heights),
                list(heights.values()),
                color=f'C{patterns.index(pattern)}',
                linestyle=LINES.get(kind, '--'),
                marker='o',
                markersize=3,
                label=name,
            )
        axis.set_title(label, fontsize=10)
        axis.set_xlabel('side of the picture, pixels')
        axis.set_xticks(list(results), [str(pixels) for pixels in results])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc='outside right center', fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def _seconds(part: str, row: Measurement) -> float:
    return row.median_seconds(part)
