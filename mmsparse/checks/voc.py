"""Check the classes of mmdet's data sets in VOC's XML format."""

import re
from collections import Counter
from pathlib import Path

from mmengine.registry import Registry

from mmsparse.checks.data import Data, listed
from mmsparse.checks.keywords import find_class
from mmsparse.errors import UsageError

OBJECT = re.compile(r'<object>.*?<name>\s*(.*?)\s*</name>', re.DOTALL)


def uses_xml_files(data: Data, datasets: Registry) -> bool:
    """Return whether a data set reads its files as mmdet's XMLDataset does."""
    xml = find_class(datasets, 'XMLDataset')
    dataset = data.dataset
    if xml is None or not isinstance(dataset, xml):
        return False
    return type(dataset).load_data_list is xml.load_data_list


def check_xml(data: Data, training: bool) -> list[str]:
    """Raise UsageError if no object in the files has one of the classes.

    Return names in the files that are not classes, and classes that no object has.
    """
    found = _object_names(data)
    names = data.classes
    if not any(found[name] for name in names):
        raise UsageError(
            f'{data.path}.metainfo.classes: no object in {data.dataset.ann_file} has '
            f'one of {listed(names)}; its objects are {listed(sorted(found), 10)}. '
            f'Spell them as in the files.'
        )
    notes = []
    if ignored := {name: n for name, n in found.items() if name not in names}:
        counts = [f'{n} of {name}' for name, n in sorted(ignored.items())]
        notes.append(f'{data.path}: objects that are no class: {listed(counts, 10)}.')
    if training and (empty := [name for name in names if not found[name]]):
        notes.append(f'{data.path}: no object of {listed(empty, 10)}.')
    return notes


def _object_names(data: Data) -> Counter[str]:
    """Count the objects in the XML files by name."""
    dataset = data.dataset
    folder = Path(dataset.sub_data_root, dataset.ann_subdir)
    found: Counter[str] = Counter()
    for line in Path(dataset.ann_file).read_text().splitlines():
        path = folder / f'{line.strip()}.xml'
        if not path.is_file():
            raise UsageError(
                f'{data.path}.ann_file: {dataset.ann_file} names {line.strip()}, but '
                f'{path} does not exist; correct the list or data_prefix.'
            )
        found.update(OBJECT.findall(path.read_text(encoding='utf-8')))
    return found
