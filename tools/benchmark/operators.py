"""Ops: every attention pattern and dense attention, over image sizes.

All run on the feature map of a second stage: an eighth of the image, 128 channels and
4 heads.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmark.report import wrap
from benchmark.timing import FORWARD, TRAINING, Candidate, Measurement, Stopwatch
from mmsparse import ops
from mmsparse.ops.attention import full_attention
from mmsparse.ops.routed import routed_attention

REFERENCE, FAST = 'reference', 'fast'
STRIDE, CHANNELS, HEADS = 8, 128, 4
REGION = 4  # side of a region in cells, as in BiFormer at 224x224
LINES = {REFERENCE: ':', FAST: '-'}
COPIES = 4  # of its largest tensor that a reference holds at a time, roughly

Attend = Callable[[str], Tensor]


@dataclass(frozen=True)
class Pattern:
    """An attention pattern on one feature map.

    Args:
        attend: Computes it with a backend.
        inputs: Tensors that get a gradient.
        numel: Elements of the largest tensor of the reference, for example its logits.
        gpu_backends: Backends that are also compared on a GPU.
    """

    attend: Attend
    inputs: tuple[Tensor, ...]
    numel: int
    gpu_backends: tuple[str, ...] = ()

    def backends(self, device: torch.device) -> dict[str, str]:
        """Return the backends to compare on a device, by name."""
        more = self.gpu_backends if device.type == 'cuda' else ()
        return {REFERENCE: 'reference', FAST: 'auto'} | {name: name for name in more}


def operator_candidates(
    pixels: int, device: torch.device, limit: float, training: bool = True
) -> list[Candidate]:
    """Prepare the reference and the fast path of every pattern.

    Args:
        pixels: Side of the square image, a multiple of 32.
        device: Device of the runs.
        limit: Bytes that a reference may need for copies of its largest tensor;
            references that need more are skipped.
        training: Whether to run a backward pass, too.

    Returns:
        The candidates, dense attention first.

    Raises:
        ValueError: ``pixels`` is not such a multiple.
    """
    unit = STRIDE * REGION
    if pixels < unit or pixels % unit:
        raise ValueError(f'A size must be a multiple of {unit}; got {pixels}.')
    torch.manual_seed(0)
    candidates = []
    for name, pattern in patterns(pixels // STRIDE, device):
        for kind, backend in pattern.backends(device).items():
            if kind == REFERENCE and 4 * COPIES * pattern.numel > limit:
                continue
            run = partial(_run, pattern, backend, training)
            candidates.append(Candidate(f'{name}, {kind}', run))
    return candidates


def patterns(side: int, device: torch.device) -> Iterator[tuple[str, Pattern]]:
    """Build every attention pattern with random inputs.

    Args:
        side: Side of the feature map, a multiple of ``REGION``.
        device: Device of the inputs.

    Yields:
        Name and pattern, dense attention first.
    """

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

    # The backward pass of its gather has a gradient for every pair of regions.
    numel = routes.shape[1] * tokens * CHANNELS
    yield 'routed', Pattern(routed, inputs, numel, gpu_backends=('triton',))

    few_k, few_v = (draw(1, side // 4, side // 4, CHANNELS) for _ in range(2))
    locations = 2 * torch.rand(1, 2, *few_k.shape[1:3], 2, device=device) - 1
    locations.requires_grad_()
    table = draw(HEADS, 55, 55)
    axis = torch.linspace(-1, 1, side, device=device)
    yield (
        'deformable',
        Pattern(
            lambda backend: ops.deformable_attention(
                q, few_k, few_v, locations, table, (axis, axis), backend
            ),
            (q, few_k, few_v, locations, table),
            HEADS * tokens * few_k.shape[1] ** 2,
            gpu_backends=('triton',),
        ),
    )

    near = draw(HEADS, 13, 13)
    yield (
        'neighborhood',
        Pattern(
            lambda backend: ops.neighborhood_attention(q, k, v, near, backend),
            (*inputs, near),
            tokens * 49 * CHANNELS,  # copies of the keys, larger than the logits
            gpu_backends=('triton', 'flex'),
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
    """Plot time and memory over the image size, both axes logarithmic.

    Args:
        results: Side of the image to its measurements.
        path: File to write.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure  # slow to import

    parts = list(next(iter(results.values()))[0].seconds)
    columns: dict[str, Callable[[Measurement], float]] = {
        f'{part}, seconds': partial(Measurement.median_seconds, part=part)
        for part in parts
    }
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
        axis.set_xlabel('side of the image, pixels')
        axis.set_xticks(list(results), [str(pixels) for pixels in results])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc='outside right center', fontsize=8)
    figure.suptitle(wrap(title, figure.get_figwidth()), fontsize=10)
    figure.savefig(path, dpi=130)
