"""Check the classes of mmdet's data sets in VOC's XML format."""

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from mmengine.registry import Registry

from mmsparse.checks.data import Data, listed, missing_files, names_in
from mmsparse.checks.keywords import find_class
from mmsparse.errors import UsageError


def uses_xml_files(data: Data, datasets: Registry) -> bool:
    """Return whether a data set reads its files as mmdet's XMLDataset does."""
    xml = find_class(datasets, 'XMLDataset')
    dataset = data.dataset
    if xml is None or not isinstance(dataset, xml):
        return False
    methods = ('load_data_list', 'parse_data_info', '_parse_instance_info')
    return all(getattr(type(dataset), x) is getattr(xml, x) for x in methods)


def check_xml(data: Data, alone: bool) -> list[str]:
    """Raise UsageError if no object in the files has one of the classes.

    Args:
        data: The data set.
        alone: Whether it must have all classes, as the only one of a training.

    Returns:
        Names in the files that are not classes, and classes that no object has.
    """
    found = _object_names(data)
    names = data.classes
    if (found or alone) and not any(found[name] for name in names):
        raise UsageError(
            f'{data.path}.metainfo.classes: no object in {data.dataset.ann_file} has '
            f'one of {listed(names)}; its objects are '
            f'{listed(sorted(map(repr, found)), 10) or "none"}. '
            f'Spell them as in the files.'
        )
    notes = []
    if ignored := {name: n for name, n in found.items() if name not in names}:
        counts = [f'{n} of {name!r}' for name, n in sorted(ignored.items())]
        notes.append(f'{data.path}: objects that are no class: {listed(counts, 10)}.')
    if alone and (empty := [name for name in names if not found[name]]):
        notes.append(f'{data.path}: no object of {listed(empty, 10)}.')
    return notes


def _object_names(data: Data) -> Counter[str]:
    """Count the objects in the XML files by name."""
    dataset = data.dataset
    root = Path(dataset.sub_data_root)
    names = Path(dataset.ann_file).read_text(encoding='utf-8').splitlines()
    files = [root / dataset.ann_subdir / f'{name}.xml' for name in names]
    images = [root / dataset.img_subdir / f'{name}.jpg' for name in names]
    whole = data.settings.get('indices') is None
    for paths in (files, images if whole else []):
        if missing := missing_files(paths):
            raise UsageError(
                f'{data.path}.ann_file: {len(missing)} of {len(paths)} files that '
                f'{dataset.ann_file} names are missing, first {missing[0]}; '
                f'{missing[0].parent} has '
                f'{listed(names_in(missing[0].parent)) or "no files"}. Correct the '
                f'list, data_prefix or names of files.'
            )
    found: Counter[str] = Counter()
    for path in files:
        found.update(_names_in(path))
    return found


def _names_in(path: Path) -> list[str]:
    try:
        objects = ElementTree.parse(path).getroot().findall('object')
    except (ElementTree.ParseError, ValueError) as error:
        raise UsageError(f'{path} is not valid XML: {error}') from error
    names = [x.findtext('name') for x in objects]
    if None in names:
        raise UsageError(f'{path}: object {names.index(None)} has no name.')
    return names
