"""Write the model tables of the READMEs and docs/configs.md from the metafiles.

In a README in configs or projects, the lines

  <!-- models: DATA [PATTERN] -->
  <!-- end of models -->

enclose a table of the models in that folder's metafile.yml that were trained on DATA
and whose names match PATTERN (* and [...] as in a shell; ! in front inverts it). In the
README of the repository,

  <!-- overview: NAME NAME ... -->
  <!-- end of models -->

enclose a table of results per backbone or detector. docs/configs.md lists all configs.
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
OVERVIEW = re.compile(
    r'(<!-- overview: (?P<names>[^>]+?) -->\n).*?(<!-- end of models -->\n)', re.DOTALL
)
MEASURED = re.compile(r'mmsparse [0-9a-f]{7,}.*')
TASKS = {
    'ImageNet-1k': 'classification',
    'ADE20K': 'segmentation',
    'COCO': 'detection',
    'COCO panoptic': 'panoptic segmentation',
}
SEGMENTORS = ('fpn', 'upernet')  # of the digits
METRICS = {
    'Top 1 Accuracy': 'top-1',
    'mIoU(ms+flip)': 'ms+flip',
}
HEADER = """\
# All configs

Every config by file name. Results are published ones, and the last column says whose
([model zoo](model_zoo.md)); those on the digits were [measured](measurements.md) with
mmsparse. Configs of `projects/` need a clone. `tools/zoo_tables.py` writes this page.

"""


@dataclass(frozen=True)
class Model:
    """A model of a metafile.

    Args:
        entry: Its entry, as parsed from YAML.
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
        """Metrics by their names in the tables."""
        return {
            METRICS.get(name, name): value
            for result in self.entry.get('Results', ())
            for name, value in result['Metrics'].items()
        }

    @property
    def method(self) -> str:
        """Detector or segmentor around the backbone; empty for a classifier."""
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
        return f'[{self.name}]({relative(self.entry["Config"], page)})'

    def source(self, page: Path) -> str:
        """Return whose the results are; an entry has them all from one source."""
        if not self.results:
            return ''
        source = self.entry['Results'][0]['Source']
        if not MEASURED.fullmatch(source):
            return source
        return f'[measured]({relative("docs/measurements.md", page)})'


def main() -> None:
    args = parse_args()
    pages = {PAGE: HEADER + table(all_models(), PAGE, with_task=True)}
    for page in [Path('README.md'), *files('README.md')]:
        pages[page] = fill((ROOT / page).read_text(), page)
    old = [page for page, text in pages.items() if read(page) != text]
    if args.check and old:
        sys.exit(
            f'error: {", ".join(map(str, old))}: tables differ from the metafiles; '
            'update with: python tools/zoo_tables.py'
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
    """Return a README with its tables filled in."""

    def section(found: re.Match) -> str:
        models = list(select(page.parent, found['data'], found['pattern'] or '*'))
        if not models:
            sys.exit(f'error: {page}: no model matches {found[1].strip()}')
        return f'{found[1]}{table(models, page)}{found[4]}'

    def summary(found: re.Match) -> str:
        return f'{found[1]}{overview(found["names"].split(), page)}{found[3]}'

    return OVERVIEW.sub(summary, SECTION.sub(section, text))


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
    """Return models as a table in Markdown, without columns that would be empty.

    Args:
        models: One a row.
        page: Page that has the table, relative to the root; links start from there.
        with_task: Whether to write the task, and all results in one column; otherwise
            each metric has its column.
    """
    columns = {'config': [model.link(page) for model in models]}
    if with_task:
        columns['task'] = [model.task for model in models]
    columns['params (M)'] = [millions(model) for model in models]
    if with_task:
        columns['result'] = [
            ', '.join(f'{name} {value}' for name, value in model.results.items())
            for model in models
        ]
    else:
        columns |= gmacs(models)
        if len({model.metadata('Epochs') for model in models}) > 1:
            columns['epochs'] = [str(m.metadata('Epochs') or '') for m in models]
        metrics = dict.fromkeys(name for model in models for name in model.results)
        for metric in metrics:
            columns[metric] = [str(m.results.get(metric, '')) for m in models]
    columns['source'] = [model.source(page) for model in models]
    return markdown({name: cells for name, cells in columns.items() if any(cells)})


def overview(names: list[str], page: Path) -> str:
    """Return a table of published results over the tasks, one backbone a row."""
    titles = ('model', 'params (M)', 'GMACs', 'top-1', 'box AP', 'mIoU', 'configs')
    columns = {title: [] for title in titles}
    for name in names:
        model = find(f'{name}_*')
        if not model:
            sys.exit(f'error: {page}: no model named {name!r}')
        detector = find(f'mask-rcnn_{name}_*-12e_coco') or model
        segmentor = find(f'upernet_{name}_*') or model
        macs = model.metadata('FLOPs')
        folder = Path(model.entry['Config']).parent
        row = (
            name,
            millions(model),
            f'{macs / 1e9:.1f}' if macs else '',
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
    rows = [columns, ['---'] * len(columns), *zip(*columns.values(), strict=True)]
    return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def millions(model: Model) -> str:
    return f'{model.metadata("Parameters") / 1e6:.2f}'


def gmacs(models: list[Model]) -> dict[str, list[str]]:
    """Return the column of GMACs, with the image size in its title if there is one."""
    sizes = {m.metadata('Resolution') for m in models if m.metadata('FLOPs')}
    one = len(sizes) == 1
    cells = []
    for model in models:
        macs = model.metadata('FLOPs') or 0
        number = f'{macs / 1e9:.0f}' if macs > 1e11 else f'{macs / 1e9:.2f}'
        size = '' if one else f' at {model.metadata("Resolution")}'
        cells.append(number + size if macs else '')
    return {f'GMACs, {sizes.pop()}' if one else 'GMACs': cells}


if __name__ == '__main__':
    main()
