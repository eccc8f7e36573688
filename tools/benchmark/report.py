"""Measurements as a table, as a record for docs/measurements and as a plot."""

import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.timing import Measurement
from mmsparse.doctor import installed_versions

MEMORY = 'peak memory'
PLOT_FORMATS = ('.png', '.svg', '.pdf')
CHARACTERS_PER_INCH = 11  # of titles


def table(measurements: Sequence[Measurement]) -> str:
    """Format measurements as a table for the screen.

    Args:
        measurements: Of the same parts; the first is the baseline of the ratios.

    Returns:
        A header and one line per measurement: median times, peak memory and ratios.
    """
    columns = {name: _columns(x) for name, x in _rows(measurements).items()}
    header = [cell for part in next(iter(columns.values())) for cell in (part, '')]
    return align(
        [
            ['', *header],
            *(
                [name, *(cell for pair in cells.values() for cell in pair)]
                for name, cells in columns.items()
            ),
        ]
    )


def align(rows: Sequence[Sequence[str]]) -> str:
    """Align the cells of rows in columns, the first to the left, the others right.

    Args:
        rows: The same number of cells in each.

    Returns:
        A line for each row.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        ).rstrip()
        for row in rows
    )


def figures(results: Mapping[Any, Sequence[Measurement]]) -> dict[str, dict[str, str]]:
    """Format the results of a command as the figures of a record.

    Args:
        results: Title of a table to its measurements.

    Returns:
        Row to column to text; the ratio of a column has its name with ``-ratio``.
    """
    found = {}
    for title, measurements in results.items():
        for name, row in _rows(measurements).items():
            key = name if len(results) == 1 else f'{title}: {name}'
            found[key] = {
                f'{column}{suffix}': cell
                for column, cells in _columns(row).items()
                for suffix, cell in zip(('', '-ratio'), cells, strict=True)
            }
    return found


def as_json(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Convert measurements to plain data, with the seconds of all rounds.

    Args:
        measurements: Of the same parts; the first is the baseline of the ratios.

    Returns:
        One entry per measurement.
    """
    return list(_rows(measurements).values())


def _rows(measurements: Sequence[Measurement]) -> dict[str, dict[str, Any]]:
    first = measurements[0]
    parts = first.seconds
    return {
        x.name: dict(
            name=x.name,
            seconds=x.seconds,
            median_seconds={part: x.median_seconds(part) for part in parts},
            least_seconds={part: min(x.seconds[part]) for part in parts},
            ratio={part: x.ratio(part, first) for part in parts},
            peak_bytes=x.peak_bytes,
            peak_ratio=_peak_ratio(x, first),
            macs=x.macs,
        )
        for x in measurements
    }


def _peak_ratio(measured: Measurement, baseline: Measurement) -> float | None:
    if measured.peak_bytes is None or not baseline.peak_bytes:
        return None
    return measured.peak_bytes / baseline.peak_bytes


def _columns(row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Text of all medians and their ratios, by column."""
    ratio = row['peak_ratio']
    return {
        **{
            part: (_seconds(seconds), f'{row["ratio"][part]:.2f}')
            for part, seconds in row['median_seconds'].items()
        },
        MEMORY: (
            _memory(row['peak_bytes']),
            'nan' if ratio is None else f'{ratio:.2f}',
        ),
    }


def plot(
    results: Mapping[str, Sequence[Measurement]], path: str | Path, title: str
) -> None:
    """Plot measurements as bars.

    Args:
        results: Title of a row of the figure to its measurements.
        path: File to write.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure  # slow to import

    parts = list(next(iter(results.values()))[0].seconds)
    width = 3.2 * (len(parts) + 1)
    heights = [0.7 + 0.4 * len(measurements) for measurements in results.values()]
    figure = Figure((width, 0.7 + sum(heights)), layout='constrained')
    rows = figure.subfigures(len(results), squeeze=False, height_ratios=heights)
    for (row,), (name, measurements) in zip(rows, results.items(), strict=True):
        row.suptitle(wrap(name, width), fontsize=9, fontweight='bold')
        _plot_bars(row.subplots(1, len(parts) + 1), parts, measurements)
    figure.suptitle(wrap(title, width), fontsize=10)
    figure.savefig(path, dpi=130)


def _plot_bars(
    axes: Sequence[Any], parts: Sequence[str], measurements: Sequence[Measurement]
) -> None:
    names = [measured.name for measured in measurements]
    values = [[x.median_seconds(part) for x in measurements] for part in parts]
    labels = [[_seconds(x) for x in lengths] for lengths in values]
    labels.append([_memory(x.peak_bytes) for x in measurements])
    values.append([x.peak_bytes or 0 for x in measurements])
    for i, (axis, column) in enumerate(zip(axes, (*parts, MEMORY), strict=True)):
        bars = axis.barh(names, values[i], color=_colors(len(names)))
        axis.bar_label(bars, labels[i], padding=3, fontsize=8)
        axis.set_title(column, fontsize=9)
        axis.set_xlim(0, 1.3 * max(values[i]))
        axis.set_xticks([])
        axis.tick_params(labelleft=i == 0, length=0)
        axis.invert_yaxis()
        axis.spines[['top', 'right', 'bottom']].set_visible(False)


def wrap(title: str, width: float) -> str:
    """Break a title into lines that fit into a figure of a width in inches.

    Args:
        title: The title, in a font of at most 10 points.
        width: The width.

    Returns:
        The lines.
    """
    return textwrap.fill(title, round(width * CHARACTERS_PER_INCH))


def environment(device: torch.device) -> dict[str, Any]:
    """Return machine, load, threads and versions.

    Args:
        device: Device of the runs.

    Returns:
        The environment as plain data.
    """
    on_gpu = device.type == 'cuda'
    return dict(
        device=torch.cuda.get_device_name(device) if on_gpu else _cpu(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        python=platform.python_version(),
        versions=installed_versions(),
    )


def record(device: torch.device) -> dict[str, str]:
    """Return machine, versions, command, commit and date of a record.

    Args:
        device: Device of the runs.

    Returns:
        The fields as text.
    """
    where = environment(device)
    threads = f'{where["threads"]} thread{"s" if where["threads"] > 1 else ""}'
    on_cpu = f', {threads}' if device.type == 'cpu' else ''
    command = [os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    return dict(
        machine=where['device'] + on_cpu,
        versions=f'Python {where["python"]}, torch {where["versions"]["torch"]}',
        command=shlex.join(['python', *command]),
        commit=_commit(),
        date=datetime.date.today().isoformat(),
    )


def _commit() -> str:
    """Return the commit of the clone, with a plus if files differ; or 'unknown'."""
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists() or shutil.which('git') is None:
        return 'unknown'
    command = ['git', 'describe', '--always', '--dirty=+', '--exclude=*']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return done.stdout.strip() or 'unknown'


def _cpu() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(':')[2] for line in lines if line.startswith('model name')]
    return names[0].strip() if names else platform.processor() or platform.machine()


def _seconds(value: float) -> str:
    return f'{value:.2f} s' if value >= 1 else f'{1000 * value:.3g} ms'


def _memory(value: float | None) -> str:
    if value is None:
        return '-'
    mebibytes = value / 2**20
    return f'{mebibytes:,.0f} MiB' if mebibytes >= 100 else f'{mebibytes:.3g} MiB'


def _colors(count: int) -> list[str]:
    return ['#8c8c8c', *['#2a78b5'] * (count - 1)]
