"""What a job has found, and its files: JSON, CSV in timm's columns, and a page."""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmark.events import FORWARD, TRAINING
from benchmark.tuning import fastest

Row = dict[str, Any]  # text that identifies a measurement, and numbers

RIGHT, WRONG = 'right', 'WRONG'
# Columns of timm's benchmark results, and those of the section models.
TIMM_COLUMNS = {
    'model': 'model',
    'infer_samples_per_sec': 'forward, images/s',
    'infer_step_time': 'forward, ms',
    'infer_batch_size': 'batch',
    'infer_img_size': 'pixels',
    'infer_gmacs': 'GMACs',
    'infer_macts': 'activations, M',
    'train_samples_per_sec': 'training, images/s',
    'train_step_time': 'training, ms',
    'train_batch_size': 'batch',
    'train_img_size': 'pixels',
    'param_count': 'parameters, M',
}


@dataclass
class Results:
    """All that a job has found.

    Args:
        tables: Rows by section.
        errors: Messages by section and step.
        skipped: Steps by section for which there was no time.
        done: Steps that ended, ``SECTION: STEP``.
        broken: Ops and backends after which the device was not usable any more.
    """

    tables: dict[str, list[Row]] = field(default_factory=dict)
    errors: dict[str, dict[str, str]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    broken: list[list[str]] = field(default_factory=list)

    @property
    def wrong(self) -> set[tuple[str, str]]:
        """Ops and backends that computed something wrong."""
        rows = self.tables.get('correctness', ())
        return {(x['op'], x['backend']) for x in rows if x['verdict'] == WRONG}

    @property
    def failed(self) -> bool:
        """Whether a backend computed something wrong, or failed in its check."""
        return bool(self.wrong or self.errors.get('correctness'))

    def usable_rows(self) -> list[Row]:
        """Return the times of the backends of ops that computed nothing wrong."""
        rows = self.tables.get('ops', ())
        return [x for x in rows if (x['op'], x['backend']) not in self.wrong]


def read_results(path: Path) -> Results:
    """Read the results that :func:`write_json` wrote; none if there is no file."""
    if not path.exists():
        return Results()
    content = json.loads(path.read_text())
    names = ('results', 'errors', 'skipped', 'done', 'broken')
    return Results(*(content[name] for name in names))


def write_json(path: Path, header: Mapping[str, Any], results: Results) -> None:
    """Write all results, with the fields of a record of docs/measurements.

    Args:
        path: File to write.
        header: Title, machine, versions, command, commit and date.
        results: What was found.
    """
    content = asdict(results)
    tables = content.pop('tables')
    figures = {
        f'{section}: {identify(row)}': numbers(row)
        for section, rows in tables.items()
        for row in rows
    }
    content = {**header, 'figures': figures, 'results': tables, **content}
    path.write_text(json.dumps(content, indent=1) + '\n')


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write the models in the columns of timm's benchmark results.

    Args:
        path: File to write.
        rows: Of the section ``models``.
    """
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(TIMM_COLUMNS)
        for row in rows:
            cells = (row.get(name, '') for name in TIMM_COLUMNS.values())
            writer.writerow(round(x, 3) if isinstance(x, float) else x for x in cells)


def write_page(
    path: Path, header: Mapping[str, Any], results: Results, captions: Mapping[str, str]
) -> None:
    """Write the tables as Markdown, and the fastest backend of every op and shape.

    Args:
        path: File to write.
        header: Title, machine, versions, command, commit and date.
        results: What was found.
        captions: Sections and what they measure.
    """
    verdict = 'Every backend that ran computes what the reference does.'
    if results.failed:
        failed = (f'{op} by {backend}' for op, backend in sorted(results.wrong))
        steps = results.errors.get('correctness', {})
        verdict = f'Wrong or failed: {"; ".join((*failed, *steps))}.'
    elif not results.tables.get('correctness'):
        verdict = 'No result was checked.'
    lines = [
        f'# {header["title"]}',
        f'{header["machine"]}; {header["versions"]}; commit {header["commit"]}, '
        f'{header["date"]}. `{header["command"]}`',
        verdict,
    ]
    if results.usable_rows():
        what = 'The fastest backend of every op and shape, of those that are right.'
        lines += ['## decide', what, markdown(decisions(results.usable_rows()))]
    for section, what in captions.items():
        lines += [f'## {section}', what]
        if rows := results.tables.get(section):
            lines.append(markdown(rows))
        if errors := results.errors.get(section):
            lines.append('\n'.join(f'- failed: {x}: {errors[x]}' for x in errors))
        if skipped := results.skipped.get(section):
            lines.append(f'No time was left for {", ".join(skipped)}.')
    path.write_text('\n\n'.join(lines) + '\n')


def decisions(rows: Sequence[Row]) -> list[Row]:
    """Return the fastest backends of every op, shape and dtype.

    Args:
        rows: Of the section ``ops``.

    Returns:
        A row for each, with the fastest backend of either pass and its milliseconds.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row['op'], row['shape'], row['dtype'])
        groups.setdefault(key, []).append(row)
    found = []
    for (op, shape, dtype), group in groups.items():
        decided: Row = dict(op=op, shape=shape, dtype=dtype)
        for name in (FORWARD, TRAINING):
            if (best := fastest(group, name)) is not None:
                column = name.removesuffix(', ms')
                decided |= {column: best['backend'], name: best[name]}
        found.append(decided)
    return found


def markdown(rows: Sequence[Row]) -> str:
    """Format rows as a table; columns are those of all rows."""
    texts = [as_text(row) for row in rows]
    columns = list(dict.fromkeys(name for row in texts for name in row))
    cells = [columns, ['---'] * len(columns)]
    cells += [[row.get(name, '') for name in columns] for row in texts]
    return '\n'.join(f'| {" | ".join(line)} |' for line in cells)


def as_text(row: Row) -> dict[str, str]:
    """Format the cells of a row, without what is neither text nor a number."""
    return {
        name: x.replace('|', '\\|') if isinstance(x, str) else f'{x:,.4g}'
        for name, x in row.items()
        if isinstance(x, (str, int, float))
    }


def identify(row: Row) -> str:
    """Return the text of a row that identifies its measurement."""
    return ', '.join(x for x in row.values() if isinstance(x, str))


def numbers(row: Row) -> dict[str, str]:
    """Return the numbers of a row as text."""
    texts = as_text(row)
    return {name: texts[name] for name in texts if not isinstance(row[name], str)}
