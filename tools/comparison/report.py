"""Draw the models of a comparison as a table, and their metric over time and costs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from training.axes import MARKERS, SPAN
from training.seeds import describe_seeds, mean_and_range

Row = dict[str, Any]
BASELINES = 'configs/baselines/'  # models of other libraries


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of models."""
    titles = ['model', *figures(rows[0])]
    lines = [titles, ['---'] * len(titles)]
    lines += [[row['name'], *figures(row).values()] for row in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def figures(row: Row) -> dict[str, str]:
    """Return the figures of a model by their titles."""
    results = list(row['results'].values())
    minutes = [result['seconds'] / 60 for result in results]
    return {
        **{name: mean_and_range(values_of(row, name)) for name in results[0]['values']},
        'params (M)': f'{row["parameters"] / 1e6:.2f}',
        'GMACs': f'{row["macs"] / 1e9:.3g}',
        'iteration (ms)': f'{1000 * row["iteration_seconds"]:.0f}',
        'memory (MiB)': f'{row["peak_bytes"] / 2**20:.0f}',
        'iterations': str(row['iterations']),
        'minutes': f'{sum(minutes) / len(minutes):.1f}',
    }


def values_of(row: Row, metric: str) -> list[float]:
    """Return a metric of all seeds."""
    return [result['values'][metric] for result in row['results'].values()]


def main_metric(row: Row) -> str:
    """Return the name of the first metric."""
    return next(iter(next(iter(row['results'].values()))['values']))


def seeds_of(rows: Sequence[Row]) -> str:
    """Return how many seeds the rows have, and what their values are."""
    return describe_seeds([len(row['results']) for row in rows])


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw the metric over training time, MACs and memory.

    Bars are the range of the seeds; curves, one for each seed, have a point for each
    evaluation. Models of other libraries are hollow and dashed. The axis of the metric
    spans at least 10 points.

    Args:
        rows: The models.
        path: PNG file to write.
        title: What was trained.
    """
    figure = Figure((13, 5), layout='constrained')
    time, macs, memory = figure.subplots(1, 3, sharey=True)
    for row, style in zip(rows, styles(rows), strict=True):
        plot_curves(time, row, style)
        plot_point(macs, row['macs'] / 1e9, row, style)
        plot_point(memory, row['peak_bytes'] / 2**20, row, style)
    for axis, label in (
        (time, 'training, in minutes'),
        (macs, 'GMACs of an image'),
        (memory, 'memory of a training iteration, in MiB'),
    ):
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    time.set_ylabel(f'{main_metric(rows[0])} on the test data, in %')
    time.set_ylim(*limits(time))
    handles, labels = macs.get_legend_handles_labels()
    figure.legend(
        [handle[0] for handle in handles],
        labels,
        loc='outside lower center',
        ncols=min(len(rows), 7),
        frameon=False,
    )
    if any(map(is_baseline, rows)):
        title += '; dashed: of other libraries'
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def styles(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Yield marker and line of each row."""
    for i, row in enumerate(rows):
        baseline = is_baseline(row)
        yield dict(
            color=f'C{i % 10}',
            marker=MARKERS[i % len(MARKERS)],
            markerfacecolor='white' if baseline else f'C{i % 10}',
            linestyle='--' if baseline else '-',
        )


def is_baseline(row: Row) -> bool:
    """Return whether a model is of another library."""
    return row['config'].startswith(BASELINES)


def plot_curves(axis: Axes, row: Row, style: dict[str, Any]) -> None:
    for points in row['curves']:
        minutes = [point['seconds'] / 60 for point in points]
        axis.plot(minutes, [x['value'] for x in points], markersize=5, **style)


def plot_point(axis: Axes, cost: float, row: Row, style: dict[str, Any]) -> None:
    """Draw mean and range of the main metric over a cost."""
    values = values_of(row, main_metric(row))
    middle = sum(values) / len(values)
    spread = [[middle - min(values)], [max(values) - middle]]
    error = spread if len(values) > 1 else None
    point = dict(style, linestyle='none')
    axis.errorbar(
        cost, middle, yerr=error, markersize=8, capsize=3, label=row['name'], **point
    )


def limits(axis: Axes) -> tuple[float, float]:
    """Return the ends of the axis of metrics, at least `SPAN` apart, in 0 to 100."""
    low, high = axis.get_ylim()
    missing = max(0, SPAN - (high - low)) / 2
    return max(0, low - missing), min(100, high + missing)
