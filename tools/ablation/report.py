"""Draw the variants of a study as a table and as a plot of metric over cost."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = dict[str, Any]
MARKERS = 'osD^vP*X'


def table(rows: list[Row]) -> str:
    """Return a Markdown table of variants, the first of which is the reference."""
    titles = ['variant', '', *figures(rows[0]), 'difference']
    lines = [titles, ['---'] * len(titles)]
    for row in rows:
        change = '' if row is rows[0] else f'{_mean(row) - _mean(rows[0]):+.1f}'
        lines.append([row['name'], row['about'], *figures(row).values(), change])
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def figures(row: Row) -> dict[str, str]:
    """Return the figures of a variant by their titles."""
    return {
        row['metric']: _values(row),
        'MACs (M)': f'{row["macs"] / 1e6:.1f}',
        'iteration (ms)': f'{1000 * row["iteration_seconds"]:.0f}',
        'params (M)': f'{row["parameters"] / 1e6:.2f}',
    }


def plot(rows: list[Row], path: Path, title: str) -> None:
    """Draw the metric over MACs and over the time of an iteration.

    Args:
        rows: The variants.
        path: PNG file to write.
        title: Title of the figure.
    """
    figure = Figure((10, 4.4), layout='constrained')
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, scale, label in (
        (axes[0], 'macs', 1e-6, 'MACs of an image, in millions'),
        (axes[1], 'iteration_seconds', 1e3, 'training iteration, in ms'),
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
        axis.set_xlabel(label)
        axis.margins(x=0.15, y=0.1)
        axis.locator_params(axis='x', nbins=6)
        axis.grid(alpha=0.3)
        axis.spines[['top', 'right']].set_visible(False)
    axes[0].set_ylabel(f'{rows[0]["metric"]} on validation digits, in %')
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        [handle[0] for handle in handles],
        labels,
        loc='outside lower center',
        ncols=min(len(rows), 6),
        frameon=False,
    )
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _mean(row: Row) -> float:
    return sum(row['values']) / len(row['values'])


def _values(row: Row) -> str:
    text = f'{_mean(row):.1f}'
    if len(row['values']) > 1:
        text += f' ({min(row["values"]):.1f} to {max(row["values"]):.1f})'
    return text
