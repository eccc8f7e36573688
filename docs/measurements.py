"""Write the measured figures of all pages from the records in docs/measurements.

A record is a JSON file with text in all its fields and figures, ID.json:

  {"title": "...", "what": "...", "machine": "...", "versions": "...",
   "command": "...", "commit": "...", "date": "2026-11-22",
   "figures": {"ROW": {"COLUMN": "98.5"}}, "configs": {"ROW": "configs/..."}}

"configs" is optional: rows that link to a config. A page has all of a record as a
table, or one figure within a sentence or a cell, between marks that are filled here:

  <!-- measured: ID -->
  <!-- end -->
  reaches <!-- measured: ID/ROW/COLUMN --><!-- end --> mIoU

docs/measurements.md lists all records, with the tables that no other page has.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = Path('docs', 'measurements.md')
FIELDS = {'title', 'what', 'machine', 'versions', 'command', 'commit', 'date'}
MARK = re.compile(r'(<!-- measured: ([^<>\n]+) -->).*?(<!-- end -->)', re.DOTALL)
COMMON = (' of an AMD EPYC', ', Python 3.11, torch 2.12.1')  # on the page only once
HEADER = """\
# Measurements

Every figure measured with mmsparse, and how to repeat it, on an AMD EPYC with Python
3.11 and torch 2.12.1. `python docs/measurements.py` writes this page, and the figures
on others, from `docs/measurements`.
"""


def main() -> None:
    args = parse_args()
    try:
        pages = build_pages(read_records())
    except ValueError as error:
        sys.exit(f'error: {error}')
    old = [page for page, text in pages.items() if read(page) != text]
    if args.check and old:
        sys.exit(
            f'error: {", ".join(map(str, old))}: figures differ from '
            'docs/measurements; update with: python docs/measurements.py'
        )
    for page in old:
        (ROOT / page).write_text(pages[page])
        print(page)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing, and exit with 1 if a page would change',
    )
    return parser.parse_args()


def read_records() -> dict[str, dict]:
    """Return all records by their IDs."""
    records = {}
    for path in sorted((ROOT / PAGE).with_suffix('').glob('*.json')):
        records[path.stem] = record = json.loads(path.read_text())
        if missing := {*FIELDS, 'figures'} - record.keys():
            raise ValueError(f'{path.name}: missing: {", ".join(sorted(missing))}')
    return records


def read(page: Path) -> str:
    path = ROOT / page
    return path.read_text() if path.is_file() else ''


def build_pages(records: dict[str, dict]) -> dict[Path, str]:
    """Return the new text of all pages with marks and of docs/measurements.md."""
    pages = {}
    homes = {}  # pages that have a whole record, by its ID
    for page in find_pages():

        def fill(mark: re.Match, page: Path = page) -> str:
            start, name, end = mark.groups()
            if name in records:
                homes[name] = page
                return f'{start}\n{table(records[name], page)}{end}'
            if mark.string[: mark.start()].endswith('\n'):
                # Markdown would end the paragraph before it.
                raise ValueError(f'{page}: the mark {name!r} must not start a line')
            return f'{start}{figure(records, name, page)}{end}'

        text = read(page)
        if filled := MARK.sub(fill, text):
            pages[page] = filled
    sections = [section(record, homes.get(ID)) for ID, record in records.items()]
    pages[PAGE] = '\n'.join([HEADER, *sections])
    return pages


def find_pages() -> list[Path]:
    paths = [
        ROOT / 'README.md',
        *ROOT.glob('docs/*.md'),
        *ROOT.glob('configs/*/README.md'),
        *ROOT.glob('projects/*/README.md'),
    ]
    return sorted(path.relative_to(ROOT) for path in paths if path != ROOT / PAGE)


def figure(records: dict[str, dict], name: str, page: Path) -> str:
    record, row, column = (*name.split('/'), '', '')[:3]
    try:
        return records[record]['figures'][row][column]
    except KeyError:
        raise ValueError(
            f'{page}: expected ID or ID/ROW/COLUMN of docs/measurements, got {name!r}'
        ) from None


def table(record: dict, page: Path) -> str:
    """Return all figures of a record in Markdown, with links as seen from a page."""
    configs = record.get('configs', {})
    rows = record['figures']
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    lines = [['', *columns]]
    for name, row in rows.items():
        config = configs.get(name)
        title = f'[{name}]({relative(config, page)})' if config else name
        lines.append([title, *(row.get(column, '') for column in columns)])
    head, *body = (f'| {" | ".join(line)} |\n' for line in lines)
    return ''.join([head, '|---' * len(lines[0]) + '|\n', *body])


def relative(path: str | Path, page: Path) -> str:
    return Path(os.path.relpath(ROOT / path, ROOT / page.parent)).as_posix()


def section(record: dict, home: Path | None) -> str:
    """Return a record's part of docs/measurements.md; `home` has its table already."""
    blocks = [f'## {record["title"]}', record['what']]
    if home:
        blocks.append(f'The figures are in [{home}]({relative(home, PAGE)}).')
    elif record['figures']:
        blocks.append(table(record, PAGE).rstrip())
    source = f'{record["machine"]}, {record["versions"]}'
    for text in COMMON:
        source = source.replace(text, '')
    source += f', commit {record["commit"]}, {record["date"]}'
    blocks.append(f'`{record["command"]}`: {source}.\n')
    return '\n\n'.join(blocks)


if __name__ == '__main__':
    main()
