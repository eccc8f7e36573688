"""Write the tables of the models, from the metafiles.

In a README of configs or projects, a table stands between the lines

  <!-- models: DATA [PATTERN] -->
  <!-- end of models -->

and has the models of that folder's metafile.yml that are trained on DATA, with a
PATTERN those of such names (* and [...] as in a shell; a ! before it: all others).
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
OURS = re.compile(r'mmsparse (?P<commit>[0-9a-f]{7,})(?P<how>.*)')
TASKS = {
    'ImageNet-1k': 'classification',
    'ADE20K': 'segmentation',
    'COCO': 'detection',
    'COCO panoptic': 'panoptic segmentation',
}
SEGMENTORS = ('fpn', 'upernet')  # of the digits
METRICS = {
    'Top 1 Accuracy': 'top-1',
    'mIoU(ms+flip)': 'six sizes and mirrored',
}
HEADER = """\
# All configs

Every config of the repository, by the name of its file; `tools/zoo_tables.py` writes
this page from the metafiles. The last column tells whose a result is, in the words of
the [model zoo](model_zoo.md). Where there is none, we have not trained the model as it
stands here, and know of nobody who did.

Configs of `projects/` need a clone: they are not in the wheel, and mim does not list
them.

"""


@dataclass(frozen=True)
class Model:
    """An entry of a metafile.

    Args:
        entry: What stands there.
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
        """Metrics by the names that the tables have for them."""
        return {
            METRICS.get(name, name): value
            for result in self.entry.get('Results', ())
            for name, value in result['Metrics'].items()
        }

    @property
    def method(self) -> str:
        """What stands around the backbone; nothing, of a classifier."""
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

    def metadata(self, name: str) -> Any:
        return self.entry['Metadata'].get(name)

    def link(self, page: Path) -> str:
        target = os.path.relpath(ROOT / self.entry['Config'], ROOT / page.parent)
        return f'[{self.name}]({Path(target).as_posix()})'

    def source(self) -> str:
        """Who has the results; an entry has them all from one source."""
        if not self.results:
            return ''
        source = self.entry['Results'][0]['Source']
        if not (own := OURS.fullmatch(source)):
            return source
        where = self.metadata('Training Resources')
        return f'ours, commit {own["commit"]}{own["how"]}, {where}'


def main() -> None:
    args = parse_args()
    pages = {PAGE: HEADER + table(all_models(), PAGE, with_task=True)}
    for page in files('README.md'):
        pages[page] = fill((ROOT / page).read_text(), page)
    old = [page for page, text in pages.items() if read(page) != text]
    if args.check and old:
        sys.exit(
            f'error: not what the metafiles say: {", ".join(map(str, old))}; '
            'python tools/zoo_tables.py writes them'
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


def files(name: str) -> list[Path]:
    found = [*ROOT.glob(f'configs/*/{name}'), *ROOT.glob(f'projects/*/{name}')]
    return sorted(path.relative_to(ROOT) for path in found)


def read(page: Path) -> str:
    path = ROOT / page
    return path.read_text() if path.is_file() else ''


def fill(text: str, page: Path) -> str:
    """Put the tables of a README between their marks."""

    def section(found: re.Match) -> str:
        models = list(select(page.parent, found['data'], found['pattern'] or '*'))
        if not models:
            sys.exit(f'error: {page}: no model for the line {found[1].strip()}')
        return f'{found[1]}{table(models, page)}{found[4]}'

    return SECTION.sub(section, text)


def select(folder: Path, data: str, pattern: str) -> Iterator[Model]:
    wanted = not pattern.startswith('!')
    for model in read_models(folder):
        named = fnmatchcase(model.name, pattern.removeprefix('!'))
        if model.data == data and named == wanted:
            yield model


@cache
def read_models(folder: Path) -> list[Model]:
    metafile = ROOT / folder / 'metafile.yml'
    if not metafile.is_file():
        return []
    return [Model(x) for x in yaml.safe_load(metafile.read_text())['Models']]


def all_models() -> list[Model]:
    return [m for path in files('metafile.yml') for m in read_models(path.parent)]


def table(models: list[Model], page: Path, with_task: bool = False) -> str:
    """Write models as a table in Markdown, without columns that would be empty.

    Args:
        models: One a row.
        page: Where the table stands, from the root.
        with_task: Tell task, method, backbone and data, and all results in one column;
            else one column for each metric.

    Returns:
        The table.
    """
    columns = {'config': [model.link(page) for model in models]}
    if with_task:
        for name in ('task', 'method', 'backbone', 'data'):
            columns[name] = [getattr(model, name) for model in models]
    columns['parameters'] = [f'{m.metadata("Parameters") / 1e6:.2f} M' for m in models]
    if with_task:
        columns['result'] = [
            ', '.join(f'{name} {value}' for name, value in model.results.items())
            for model in models
        ]
    else:
        columns |= multiply_adds(models)
        if len({model.metadata('Epochs') for model in models}) > 1:
            columns['epochs'] = [str(m.metadata('Epochs') or '') for m in models]
        metrics = dict.fromkeys(name for model in models for name in model.results)
        for metric in metrics:
            columns[metric] = [str(m.results.get(metric, '')) for m in models]
    columns['result of'] = [model.source() for model in models]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [columns, ['---'] * len(columns), *zip(*columns.values(), strict=True)]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def multiply_adds(models: list[Model]) -> dict[str, list[str]]:
    """Make their column; the size of pictures is in the title where it is one."""
    sizes = {m.metadata('Resolution') for m in models if m.metadata('FLOPs')}
    one = len(sizes) == 1
    cells = []
    for model in models:
        macs = model.metadata('FLOPs') or 0
        number = f'{macs / 1e9:.0f} G' if macs > 1e11 else f'{macs / 1e9:.2f} G'
        size = '' if one else f' at {model.metadata("Resolution")}'
        cells.append(number + size if macs else '')
    return {f'multiply-adds, {sizes.pop()}' if one else 'multiply-adds': cells}


if __name__ == '__main__':
    main()
