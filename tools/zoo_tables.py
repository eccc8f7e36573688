"""Write the tables of all models from the metafiles.

In a README of configs/ or projects/, the two lines

  <!-- models: DATA [PATTERN] -->
  <!-- end of models -->

enclose a table of the models in the metafile.yml of its folder that are trained on
DATA. PATTERN selects them by name (* and [...] as in a shell; !PATTERN: all others).
In the README of the repository,

  <!-- overview: NAME NAME ... -->
  <!-- end of models -->

enclose a table of published results, one backbone or detector per row. docs/configs.md
lists the configs of all folders.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from _cli import run

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path('docs', 'configs.md')
SECTION = re.compile(
    r'(<!-- models: (?P<data>[^*!>]+?)(?: (?P<pattern>!?\S*[*]\S*))? -->\n)'
    r'.*?(<!-- end of models -->\n)',
    re.DOTALL,
)
OVERVIEW = re.compile(
    r'(<!-- overview: (?P<names>[^>]+) -->\n).*?(<!-- end of models -->\n)', re.DOTALL
)
HEADER = """\
# All configs

Search by method, backbone or data (`in1k`, `coco`, `ade20k`, `digits`). Results on the
digits were [measured](measurements.md); others are published, with
[source](model_zoo.md), parameters and GMACs in the README of the folder.

"""


@dataclass(frozen=True)
class Model:
    """One model of a metafile.

    Args:
        entry: Its entry there.
    """

    entry: dict[str, Any]

    @property
    def name(self) -> str:
        return self.entry['Name']

    @property
    def data(self) -> str:
        return self.entry['Metadata']['Training Data']

    @property
    def results(self) -> dict[str, float]:
        """Metrics by the titles of their columns."""
        return {
            {'Top 1 Accuracy': 'top-1', 'mIoU(ms+flip)': 'ms+flip'}.get(
                name, name
            ): value
            for result in self.entry.get('Results', ())
            for name, value in result['Metrics'].items()
        }

    def metadata(self, name: str) -> Any:
        return self.entry['Metadata'].get(name)

    def macs(self, with_size: bool) -> str:
        macs = (self.metadata('FLOPs') or 0) / 1e9
        size = f' at {self.metadata("Resolution")}' if with_size else ''
        return f'{macs:.{0 if macs > 100 else 2}f}{size}' if macs else ''

    def link(self, page: Path) -> str:
        return f'[{self.name}]({relative(self.entry["Config"], page)})'

    def source(self, page: Path) -> str:
        """Return where the results are from; all of a model have one source."""
        if not self.results:
            return ''
        source = self.entry['Results'][0]['Source']
        if not source.startswith('mmsparse '):
            return source
        return f'[measured]({relative("docs/measurements.md", page)})'


def main() -> None:
    args = parse_args(__doc__)
    pages = {PAGE: HEADER + table(all_models(), PAGE, summary=True)}
    for page in [Path('README.md'), *files('README.md')]:
        pages[page] = fill((ROOT / page).read_text(), page)
    write(pages, args.check, 'outdated tables in {}; run python tools/zoo_tables.py')


def write(pages: Mapping[Path, str], check: bool, problem: str) -> None:
    """Write the files that differ; with check, exit with their names in problem."""
    outdated = [page for page, text in pages.items() if read(page) != text]
    if check and outdated:
        sys.exit(f'error: {problem.format(", ".join(map(str, outdated)))}')
    for page in outdated:
        (ROOT / page).write_text(pages[page])
        print(page)


def parse_args(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with 1 if a file is outdated',
    )
    return parser.parse_args()


def files(name: str) -> list[Path]:
    found = [*ROOT.glob(f'configs/*/{name}'), *ROOT.glob(f'projects/*/{name}')]
    return sorted(path.relative_to(ROOT) for path in found)


def read(page: Path) -> str:
    path = ROOT / page
    return path.read_text() if path.is_file() else ''


@cache
def read_models(folder: Path) -> list[Model]:
    entries = yaml.safe_load(read(folder / 'metafile.yml') or 'Models: []')['Models']
    return [Model(entry) for entry in entries]


def all_models() -> list[Model]:
    return [m for path in files('metafile.yml') for m in read_models(path.parent)]


def fill(text: str, page: Path) -> str:
    """Fill in the tables of a README."""

    def section(found: re.Match) -> str:
        models = list(select(page.parent, found['data'], found['pattern'] or '*'))
        if not models:
            sys.exit(f'error: {page}: no model matches the line {found[1].strip()}')
        return f'{found[1]}{table(models, page)}{found[4]}'

    def summary(found: re.Match) -> str:
        return f'{found[1]}{overview(found["names"].split(), page)}{found[3]}'

    return OVERVIEW.sub(summary, SECTION.sub(section, text))


def select(folder: Path, data: str, pattern: str) -> Iterator[Model]:
    wanted = not pattern.startswith('!')
    for model in read_models(folder):
        matches = fnmatchcase(model.name, pattern.removeprefix('!'))
        if model.data == data and matches == wanted:
            yield model


def table(models: list[Model], page: Path, summary: bool = False) -> str:
    """Format models as a Markdown table without empty columns.

    Args:
        models: One per row.
        page: File of the table, relative to the root.
        summary: All results in one column, and no others.

    Returns:
        The table.
    """
    columns = {'config': [model.link(page) for model in models]}
    if summary:
        columns['result'] = [
            ', '.join(f'{name} {value}' for name, value in model.results.items())
            for model in models
        ]
    else:
        sizes = {m.metadata('Resolution') for m in models if m.metadata('FLOPs')}
        title = f'GMACs at {min(sizes)}' if len(sizes) == 1 else 'GMACs'
        columns['params (M)'] = [
            f'{model.metadata("Parameters") / 1e6:.2f}' for model in models
        ]
        columns[title] = [model.macs(with_size=len(sizes) > 1) for model in models]
        if len({model.metadata('Epochs') for model in models}) > 1:
            columns['epochs'] = [str(m.metadata('Epochs') or '') for m in models]
        for metric in dict.fromkeys(x for model in models for x in model.results):
            columns[metric] = [str(m.results.get(metric, '')) for m in models]
        columns['source'] = [model.source(page) for model in models]
    return markdown({name: cells for name, cells in columns.items() if any(cells)})


def overview(names: list[str], page: Path) -> str:
    """Format published results over the tasks, one backbone or detector per row."""
    titles = ('model', 'params (M)', 'GMACs', 'top-1', 'box AP', 'mIoU', 'configs')
    columns = {title: [] for title in titles}
    for name in names:
        model = find(f'{name}_*')
        if not model:
            sys.exit(f'error: {page}: no model named {name!r}')
        detector = find(f'mask-rcnn_{name}_*-12e_coco') or model
        segmentor = find(f'upernet_{name}_*') or model
        folder = Path(model.entry['Config']).parent
        row = (
            name,
            f'{model.metadata("Parameters") / 1e6:.2f}',
            model.macs(with_size=False),
            model.results.get('top-1', ''),
            detector.results.get('box AP', ''),
            segmentor.results.get('mIoU', ''),
            f'[{folder.name}]({relative(folder, page)})',
        )
        for cells, value in zip(columns.values(), row, strict=True):
            cells.append(str(value))
    return markdown(columns)


def find(pattern: str) -> Model | None:
    return next((m for m in all_models() if fnmatchcase(m.name, pattern)), None)


def relative(path: str | Path, page: Path) -> str:
    return Path(os.path.relpath(ROOT / path, ROOT / page.parent)).as_posix()


def markdown(columns: dict[str, list[str]]) -> str:
    rows = [columns, *zip(*columns.values(), strict=True)]
    head, *body = (f'| {" | ".join(row)} |\n' for row in rows)
    return ''.join([head, '|---' * len(columns) + '|\n', *body])


if __name__ == '__main__':
    run(main)
