"""Write the tables of all models from the metafiles.

In a README of configs/ or projects/, the two lines

  <!-- models: DATA [PATTERN] -->
  <!-- end of models -->

enclose a table of the models in the metafile.yml of its folder that are trained on
DATA. PATTERN selects them by name (* and [...] as in a shell; !PATTERN: all others).
docs/configs.md lists the configs of all folders.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path('docs', 'configs.md')
SECTION = re.compile(
    r'(<!-- models: (?P<data>[^*!>]+?)(?: (?P<pattern>!?\S*[*]\S*))? -->\n)'
    r'.*?(<!-- end of models -->\n)',
    re.DOTALL,
)
TASKS = {
    'ImageNet-1k': 'classification',
    'ADE20K': 'segmentation',
    'COCO': 'detection',
    'COCO panoptic': 'panoptic segmentation',
}
SEGMENTORS = ('fpn', 'upernet')
HEADER = """\
# All configs

The configs of this repository with their results, generated from the metafiles by
`tools/zoo_tables.py`. The [model zoo](model_zoo.md) explains the sources of results;
models without a result have not been trained. Configs of `projects/` are in a clone
only, not in the wheel.

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
            {'Top 1 Accuracy': 'top-1', 'mIoU(ms+flip)': 'mIoU (ms+flip)'}.get(
                name, name
            ): value
            for result in self.entry.get('Results', ())
            for name, value in result['Metrics'].items()
        }

    @property
    def method(self) -> str:
        """The detector or segmentor; empty for a classifier."""
        parts = self.name.split('_')
        return '' if re.match(r'\d+xb\d+', parts[1]) else parts[0]

    @property
    def backbone(self) -> str:
        return self.name.split('_')[1 if self.method else 0]

    @property
    def task(self) -> str:
        if self.data in TASKS:
            return TASKS[self.data]
        if not self.method:
            return 'classification'
        return 'segmentation' if self.method in SEGMENTORS else 'detection'

    @property
    def source(self) -> str:
        """Where the results are from; all results of a model have one source."""
        if not self.results:
            return ''
        machine = self.metadata('Training Resources')
        source = self.entry['Results'][0]['Source']
        return f'{source}, {machine}' if machine else source

    def metadata(self, name: str) -> Any:
        return self.entry['Metadata'].get(name)

    def macs(self, with_size: bool) -> str:
        macs = (self.metadata('FLOPs') or 0) / 1e9
        size = f' at {self.metadata("Resolution")}' if with_size else ''
        return f'{macs:.{0 if macs > 100 else 2}f}{size}' if macs else ''

    def link(self, page: Path) -> str:
        target = os.path.relpath(ROOT / self.entry['Config'], ROOT / page.parent)
        return f'[{self.name}]({Path(target).as_posix()})'


def main() -> None:
    args = parse_args()
    everything = [m for x in files('metafile.yml') for m in read_models(x.parent)]
    pages = {PAGE: HEADER + table(everything, PAGE, summary=True)}
    for page in files('README.md'):
        pages[page] = fill((ROOT / page).read_text(), page)
    outdated = [page for page, text in pages.items() if read(page) != text]
    if args.check and outdated:
        sys.exit(
            f'error: outdated tables in {", ".join(map(str, outdated))}; '
            'run python tools/zoo_tables.py'
        )
    for page in outdated:
        (ROOT / page).write_text(pages[page])
        print(page)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--check',
        action='store_true',
        help='write nothing; exit with 1 if a page is outdated',
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


def fill(text: str, page: Path) -> str:
    """Fill in the tables of a README."""

    def section(found: re.Match) -> str:
        models = list(select(page.parent, found['data'], found['pattern'] or '*'))
        if not models:
            sys.exit(f'error: {page}: no model matches the line {found[1].strip()}')
        return f'{found[1]}{table(models, page)}{found[4]}'

    return SECTION.sub(section, text)


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
        summary: Add task, method, backbone and data, and join all results in one
            column, instead of one column for each metric.

    Returns:
        The table.
    """
    columns = {'config': [model.link(page) for model in models]}
    params = [f'{model.metadata("Parameters") / 1e6:.2f}' for model in models]
    if summary:
        for name in ('task', 'method', 'backbone', 'data'):
            columns[name] = [getattr(model, name) for model in models]
        columns['params (M)'] = params
        columns['result'] = [
            ', '.join(f'{name} {value}' for name, value in model.results.items())
            for model in models
        ]
    else:
        sizes = {m.metadata('Resolution') for m in models if m.metadata('FLOPs')}
        title = f'GMACs at {min(sizes)}' if len(sizes) == 1 else 'GMACs'
        columns['params (M)'] = params
        columns[title] = [model.macs(with_size=len(sizes) > 1) for model in models]
        if len({model.metadata('Epochs') for model in models}) > 1:
            columns['epochs'] = [str(m.metadata('Epochs') or '') for m in models]
        for metric in dict.fromkeys(x for model in models for x in model.results):
            columns[metric] = [str(m.results.get(metric, '')) for m in models]
    columns['source'] = [model.source for model in models]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [columns, ['---'] * len(columns), *zip(*columns.values(), strict=True)]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


if __name__ == '__main__':
    main()
