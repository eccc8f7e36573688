"""Draw the variants of a study as a table and as a plot of metric over cost."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from training.axes import MARKERS, SPAN
from training.seeds import describe_seeds, mean_and_range

from ablation.significance import describe_difference, residual_deviation

Row = dict[str, Any]


def table(rows: list[Row]) -> str:
    """Return a Markdown table of variants, the first of which is the reference."""
    found = all_figures(rows)
    titles = ['variant', '', *found[rows[0]['name']]]
    lines = [titles, ['---'] * len(titles)]
    lines += [[x['name'], x['about'], *found[x['name']].values()] for x in rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def all_figures(rows: list[Row]) -> dict[str, dict[str, str]]:
    """Return the figures of all variants, with their differences from the first."""
    first, *others = (row['values'] for row in rows)
    deviation = residual_deviation([first, *others])
    changes = ['', *(describe_difference(x, first, deviation) for x in others)]
    return {
        row['name']: figures(row) | {'difference': change}
        for row, change in zip(rows, changes, strict=True)
    }


def figures(row: Row) -> dict[str, str]:
    """Return the figures of a variant by their titles."""
    return {
        row['metric']: mean_and_range(row['values']),
        'MACs (M)': f'{row["macs"] / 1e6:.1f}',
        'iteration (ms)': f'{1000 * row["iteration_seconds"]:.0f}',
        'memory (MiB)': f'{row["peak_bytes"] / 2**20:.0f}',
        'params (M)': f'{row["parameters"] / 1e6:.2f}',
    }


def plot(rows: list[Row], path: Path, title: str) -> None:
    """Draw the metric over MACs and over the time of an iteration.

    Bars are the range of the seeds. Axes are long enough that noise does not seem to be
    a difference: that of the metric spans at least 10 points, and that of the time half
    of the longest.

    Args:
        rows: The variants.
        path: PNG file to write.
        title: What was trained.
    """
    figure = Figure((10, 4.8), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, scale, share, label in (
        (axes[0], 'macs', 1e-6, 0.2, 'MACs of an image, in millions'),
        (axes[1], 'iteration_seconds', 1e3, 0.5, 'training iteration, in ms'),
    ):
        for i, row in enumerate(rows):
            middle = _mean(row)
            spread = [[middle - min(row['values'])], [max(row['values']) - middle]]
            axis.errorbar(
                scale * row[key],
                middle,
                yerr=spread if len(row['values']) > 1 else None,
                fmt=MARKERS[i % len(MARKERS)],
                color='black' if i == 0 else f'C{i - 1}',
                markersize=8,
                capsize=3,
                label=row['name'],
            )
        costs = [scale * row[key] for row in rows]
        axis.set_xlim(*_limits(costs, share * max(costs)))
        axis.set_xlabel(label)
        axis.locator_params(axis='x', nbins=6)
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    values = [value for row in rows for value in row['values']]
    axes[0].set_ylim(*_limits(values, SPAN))
    axes[0].set_ylabel(f'{rows[0]["metric"]}, in %')
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        [handle[0] for handle in handles],
        labels,
        loc='outside lower center',
        ncols=min(len(rows), 6),
        frameon=False,
    )
    seeds = describe_seeds([len(row['values']) for row in rows])
    figure.suptitle(f'{title}\n{seeds}', fontsize=11)
    figure.savefig(path, dpi=110)


def _limits(values: list[float], span: float) -> tuple[float, float]:
    """Return the ends of an axis around values, at least ``span`` apart."""
    low, high = min(values), max(values)
    half = max(span, 1.2 * (high - low)) / 2
    return (low + high) / 2 - half, (low + high) / 2 + half


def _mean(row: Row) -> float:
    return sum(row['values']) / len(row['values'])
