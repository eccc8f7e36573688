"""Measurements as a table, as JSON and as a picture."""

import datetime
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmark.timing import Measurement
from mmsparse.doctor import installed_versions

MEMORY = 'peak memory'
PLOT_FORMATS = ('.png', '.svg', '.pdf')


def table(measurements: Sequence[Measurement]) -> str:
    """Write measurements as a table for the screen.

    Args:
        measurements: Of the same parts; the first is what others are compared with.

    Returns:
        A line for the titles and one for each measurement: median times, peak memory
        and the quotients with the first.
    """
    first = measurements[0]
    rows = [['', *(cell for part in (*first.seconds, MEMORY) for cell in (part, ''))]]
    for measured in measurements:
        cells = [measured.name]
        for part in first.seconds:
            cells.append(_seconds(measured.median_seconds(part)))
            cells.append(f'{measured.ratio(part, first):.2f}')
        cells.append(_memory(measured.peak_bytes))
        cells.append(f'{_memory_ratio(measured, first):.2f}')
        rows.append(cells)
    return align(rows)


def align(rows: Sequence[Sequence[str]]) -> str:
    """Set cells below each other, those of the first column to the left.

    Args:
        rows: As many cells in each.

    Returns:
        A line for each.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return '\n'.join(
        '  '.join(
            [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        ).rstrip()
        for row in rows
    )


def as_json(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Write measurements as plain data.

    Args:
        measurements: As for :func:`table`.

    Returns:
        One entry a measurement.
    """
    first = measurements[0]
    return [
        dict(
            name=measured.name,
            seconds=measured.seconds,
            median_seconds={
                part: measured.median_seconds(part) for part in first.seconds
            },
            ratio={part: measured.ratio(part, first) for part in first.seconds},
            peak_bytes=measured.peak_bytes,
            peak_ratio=_memory_ratio(measured, first),
        )
        for measured in measurements
    ]


def plot(
    results: Mapping[str, Sequence[Measurement]], path: str | Path, title: str
) -> None:
    """Draw measurements as bars, and write the picture.

    Args:
        results: Title of a row of the picture to its measurements.
        path: Where to write it.
        title: Of the whole.
    """
    from matplotlib.figure import Figure  # slow to import

    parts = list(next(iter(results.values()))[0].seconds)
    figure = Figure(
        (3.2 * (len(parts) + 1), 1.2 + 1.9 * len(results)), layout='constrained'
    )
    axes = figure.subplots(len(results), len(parts) + 1, squeeze=False)
    for row, (name, measurements) in zip(axes, results.items(), strict=True):
        names = [measured.name for measured in measurements]
        values = [[x.median_seconds(part) for x in measurements] for part in parts]
        labels = [[_seconds(x) for x in lengths] for lengths in values]
        values.append([x.peak_bytes for x in measurements])
        labels.append([_memory(x) for x in values[-1]])
        columns = (*parts, MEMORY)
        for i, axis in enumerate(row):
            bars = axis.barh(names, values[i], color=_colors(len(names)))
            axis.bar_label(bars, labels[i], padding=3, fontsize=8)
            axis.set_title(f'{columns[i]}, {name}', fontsize=9)
            axis.set_xlim(0, 1.3 * max(values[i]))
            axis.set_xticks([])
            axis.tick_params(labelleft=i == 0, length=0)
            axis.invert_yaxis()
            axis.spines[['top', 'right', 'bottom']].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=130)


def environment(device: torch.device) -> dict[str, Any]:
    """Describe where measurements are made.

    Args:
        device: Where models compute.

    Returns:
        Machine, load, threads and versions.
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
    """Describe how measurements are made, as text for docs/measurements.

    Args:
        device: Where models compute.

    Returns:
        Machine, versions, command, commit and date.
    """
    where = environment(device)
    on_cpu = f', {where["threads"]} threads' if device.type == 'cpu' else ''
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


def _memory_ratio(measured: Measurement, first: Measurement) -> float:
    return measured.peak_bytes / first.peak_bytes if first.peak_bytes else float('nan')


def _seconds(value: float) -> str:
    return f'{value:.2f} s' if value >= 1 else f'{1000 * value:.3g} ms'


def _memory(value: float) -> str:
    mebibytes = value / 2**20
    return f'{mebibytes:,.0f} MiB' if mebibytes >= 100 else f'{mebibytes:.3g} MiB'


def _colors(count: int) -> list[str]:
    return ['#8c8c8c', *['#2a78b5'] * (count - 1)]
