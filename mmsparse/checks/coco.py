"""Check annotation files in COCO format against classes, images and each other."""

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from numbers import Number
from pathlib import Path, PurePath
from typing import Any

from mmengine.registry import Registry

from mmsparse.checks.data import Data, listed, missing_files, names_in, read_json
from mmsparse.checks.keywords import find_class, type_name
from mmsparse.errors import UsageError

NEEDED = {  # keys of each part with the types of their values
    'images': {'id': Hashable, 'file_name': str, 'height': Number, 'width': Number},
    'annotations': {
        'id': Hashable,
        'image_id': Hashable,
        'category_id': Hashable,
        'bbox': list,
        'area': Number,
    },
    'categories': {'id': Hashable, 'name': Hashable},
}
TYPES = {Hashable: 'a number or a name', Number: 'a number', str: 'a name'}
TYPES[list] = '(x, y, width, height)'
IGNORED = 'ignore is set'
CROWD = 'iscrowd is set'
MEANT = (CROWD, IGNORED)  # why boxes are not learned, on purpose
ENOUGH_BOXES = 8  # to recognize boxes that are given by their corners


@dataclass
class Annotations:
    """Summary of an annotation file."""

    path: str
    categories: list[str]  # names in the order of the file
    images: dict[Any, str]  # file names by id
    images_of: dict[Any, set] = field(default_factory=dict)  # ids by category
    boxes: Counter[str] = field(default_factory=Counter)  # usable ones by category
    per_image: Counter[Any] = field(default_factory=Counter)  # by id of the image
    dropped: dict[str, list[str]] = field(default_factory=dict)  # boxes by reason
    corners: bool = False  # bbox is (x1, y1, x2, y2)


def uses_coco_files(data: Data, datasets: Registry) -> bool:
    """Return whether a data set reads its file as mmdet's CocoDataset does."""
    coco = find_class(datasets, 'CocoDataset')
    own = type(data.dataset)
    if coco is None or not issubclass(own, coco):
        return False
    known = own.parse_data_info.__module__.startswith('mmdet.')
    same = own.load_data_list is coco.load_data_list and own.COCOAPI is coco.COCOAPI
    return known and same


def check_coco(data: Data, training: bool) -> list[str]:
    """Raise UsageError unless classes, boxes and images of a data set fit its file.

    Return what is dropped from the file without an error, one line each.
    """
    file = read_annotations(data.dataset.ann_file)
    _check_names(data, file)
    if unknown := file.dropped.get('unknown category_id'):
        raise UsageError(
            f'{file.path}: {_count(unknown)} with a category_id that is not in '
            f'categories; add the categories, or correct the ids.'
        )
    if file.corners:
        raise UsageError(
            f'{file.path}: bbox must be (x, y, width, height); most boxes leave their '
            f'image, and all fit as corners (x1, y1, x2, y2). Convert them.'
        )
    _check_images(data, file, training)
    return [
        f'{data.path}: {_count(x)} of {file.path} not used: {reason}.'
        for reason, x in file.dropped.items()
        if reason not in MEANT
    ]


def check_boxes(datasets: Sequence[Data]) -> list[str]:
    """Raise UsageError unless the data sets of a training have boxes.

    Return a note of classes without any.
    """
    files = [read_annotations(x.dataset.ann_file) for x in datasets]
    path, names = datasets[0].path, datasets[0].classes
    paths = listed([file.path for file in files])
    if not any(file.boxes[name] for file in files for name in names):
        reasons = [
            f'{_count(boxes)}: {reason}'
            for file in files
            for reason, boxes in file.dropped.items()
        ]
        found = '; '.join(reasons) or 'it has none of these classes'
        raise UsageError(
            f'{path}: no box of {paths} can be used ({found}). Correct the file.'
        )
    empty = [name for name in names if not any(file.boxes[name] for file in files)]
    if not empty:
        return []
    return [f'{path}: {paths} has no box of {listed(empty, 10)}.']


def check_queries(data: Data, model: Mapping[str, Any]) -> list[str]:
    """Return a note if an image has more boxes than a DETR has queries."""
    queries = model.get('num_queries')
    if data.has_indices or type(queries) is not int:
        return []
    file = read_annotations(data.dataset.ann_file)
    found = file.per_image.most_common(1)
    if not found or found[0][1] <= queries:
        return []
    image, count = found[0]
    return [
        f'{data.path}: {file.images[image]} has {count} boxes, more than '
        f'model.num_queries={queries}, the most that can be detected; increase it.'
    ]


def _check_names(data: Data, file: Annotations) -> None:
    names = data.classes
    if twice := [name for name in names if file.categories.count(name) > 1]:
        raise UsageError(f'{file.path}: two categories have the name {twice[0]!r}.')
    missing = [name for name in names if name not in file.categories]
    own = 'classes' in (data.settings.get('metainfo') or {})
    if missing and not own:
        raise UsageError(
            f'{data.path}.metainfo: not set, so that its classes are the {len(names)} '
            f'of {type(data.dataset).__name__}, but {file.path} has '
            f'{listed(file.categories)}; set metainfo=dict(classes='
            f'{tuple(file.categories[:10])}) for every data set.'
        )
    if missing:
        first, known = str(missing[0]), [str(x) for x in file.categories]
        close = get_close_matches(first, known, 1, cutoff=0.5)
        close = close or [x for x in known if x.lower() == first.lower()]
        advice = f'did you mean {close[0]!r}? Its' if close else 'its'
        raise UsageError(
            f'{data.path}.metainfo.classes: {listed(missing)} not in {file.path}; '
            f'{advice} categories are {listed(file.categories, 10)}. Spell them as in '
            f'the file.'
        )
    order = [name for name in file.categories if name in names]
    if order != list(names):
        raise UsageError(
            f'{data.path}.metainfo.classes: mmdet numbers the classes in the order of '
            f'{file.path}, so they must have it: {listed(order, 10)}; got '
            f'{listed(names, 10)}.'
        )


def _check_images(data: Data, file: Annotations, training: bool) -> None:
    filtered = (data.dataset.filter_cfg or {}).get('filter_empty_gt', False)
    used = file.images.keys()
    if training and filtered:
        used = set().union(*(file.images_of.get(x, ()) for x in data.classes))
    if not used:
        raise UsageError(f'{data.path}: {file.path} has no images that can be used.')
    folder = str(data.dataset.data_prefix.get('img') or '')
    elsewhere = any('://' in x for x in (folder, *file.images.values()))
    if elsewhere or data.has_indices:
        return
    paths = [Path(folder, name) for key, name in file.images.items() if key in used]
    if missing := missing_files(paths):
        raise UsageError(
            f'{data.path}: {len(missing)} of {len(paths)} images of {file.path} are '
            f'missing, first {missing[0]}; {missing[0].parent} has '
            f'{listed(names_in(missing[0].parent)) or "no files"}. Change '
            f'data_prefix.img, or file_name in the file.'
        )


def check_evaluator_file(
    path: str, metric: Mapping[str, Any], datasets: Sequence[Data]
) -> None:
    """Raise UsageError unless a metric has the annotation file of its loader.

    Args:
        path: Path of the metric in the config.
        metric: Its settings.
        datasets: Data sets of its loader.
    """
    name = metric.get('ann_file')
    if not name or '://' in str(name) or metric.get('backend_args'):
        return
    if not Path(name).is_file():
        raise UsageError(
            f'{path}.ann_file: no such file: {name}; set it to that of the data set'
            f'{f", {datasets[0].dataset.ann_file}" if datasets else ""}.'
        )
    if len(datasets) != 1 or datasets[0].has_indices:
        return
    own = Path(getattr(datasets[0].dataset, 'ann_file', '') or '')
    if own.suffix != '.json' or not own.is_file() or own.samefile(name):
        return
    content, other = (read_json(Path(x)) for x in (own, name))
    if not _is_coco(content) or not _is_coco(other):
        return
    if _image_names(content) != _image_names(other):
        raise UsageError(
            f'{path}.ann_file={name} has other images than {own}, which '
            f'{datasets[0].path} reads; set both to the same file.'
        )
    known, found = (_categories(x, datasets[0]) for x in (content, other))
    if type_name(metric) == 'CocoMetric' and known != found:
        raise UsageError(
            f'{path}.ann_file={name} has other categories than {own}, which '
            f'{datasets[0].path} reads: {listed(found, 10) or "none"} instead of '
            f'{listed(known, 10)}; set both to the same file.'
        )


def _is_coco(content: Any) -> bool:
    return isinstance(content, dict) and 'images' in content


def _image_names(content: Mapping[str, Any]) -> set[tuple[Any, str]]:
    """Return ids and names of the images of a file, without their folders."""
    return {
        (x.get('id'), PurePath(str(x.get('file_name'))).name) for x in content['images']
    }


def _categories(content: Mapping[str, Any], data: Data) -> list[Any]:
    """Return the categories that are classes, in order; of panoptic data none."""
    if data.dataset.metainfo.get('stuff_classes'):
        return []
    names = [x.get('name') for x in content.get('categories', ())]
    return [x for x in names if x in data.classes]


def read_annotations(path: str) -> Annotations:
    """Read an annotation file; UsageError says what mmdet could not read."""
    stat = Path(path).stat()
    return _read(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _read(path: str, *changed: int) -> Annotations:
    content = read_json(Path(path))
    if isinstance(content, dict):  # images to test have no annotations
        annotations = content.setdefault('annotations', [])
        content['annotations'] = [x for x in annotations if not _is_ignored(x)]
    _check_keys(path, content)
    names = {x['id']: x['name'] for x in content['categories']}
    file = Annotations(
        path, list(names.values()), {x['id']: x['file_name'] for x in content['images']}
    )
    if ignored := [f'id {x.get("id")}' for x in annotations if _is_ignored(x)]:
        file.dropped[IGNORED] = ignored
    sizes = {x['id']: (x['width'], x['height']) for x in content['images']}
    for box, reason in _boxes(path, content['annotations'], names, sizes):
        if reason:
            file.dropped.setdefault(reason, []).append(f'id {box["id"]}')
        else:
            file.boxes[names[box['category_id']]] += 1
            file.per_image[box['image_id']] += 1
        name = names.get(box['category_id'])
        file.images_of.setdefault(name, set()).add(box['image_id'])
    file.corners = _are_corners(content['annotations'], sizes)
    return file


def _is_ignored(annotation: Any) -> bool:
    return isinstance(annotation, dict) and bool(annotation.get('ignore'))


def _check_keys(path: str, content: Any) -> None:
    for part, keys in NEEDED.items():
        items = content.get(part) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise UsageError(
                f'{path} must have lists of {", ".join(NEEDED)} (COCO format); '
                f'{part} is missing.'
            )
        for i, item in enumerate(items):
            missing = [key for key in keys if key not in item]
            if missing:
                raise UsageError(
                    f'{path}: {part}[{i}] has no {", ".join(missing)}; mmdet needs '
                    f'{", ".join(keys)}.'
                )
            for key, kind in keys.items():
                if not isinstance(item[key], kind):
                    raise UsageError(
                        f'{path}: {part}[{i}].{key} must be {TYPES[kind]}; got '
                        f'{item[key]!r:.60}.'
                    )
        twice = [x for x, n in Counter(x['id'] for x in items).items() if n > 1]
        if twice:
            raise UsageError(f'{path}: two {part} have the id {twice[0]!r}.')


def _boxes(
    path: str, annotations: Sequence[Mapping], names: Mapping, sizes: Mapping
) -> Iterator[tuple[Mapping, str]]:
    """Yield every annotation, and why mmdet drops its box, '' if it does not."""
    for annotation in annotations:
        box = annotation['bbox']
        if len(box) != 4 or not all(_is_finite(x) for x in box):
            raise UsageError(
                f'{path}: bbox of the annotation with id {annotation["id"]} must be '
                f'(x, y, width, height); got {box}.'
            )
        if annotation['image_id'] not in sizes:
            yield annotation, 'unknown image_id'
        elif annotation['category_id'] not in names:
            yield annotation, 'unknown category_id'
        else:
            size = sizes[annotation['image_id']]
            reason = _lost(box, annotation['area'], size)
            crowd = annotation.get('iscrowd')
            yield annotation, reason or (CROWD if crowd else '')


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _lost(box: Sequence[float], area: float, size: Sequence[float]) -> str:
    """Return why CocoDataset drops a box, '' if it does not."""
    x, y, width, height = box
    if width < 1 or height < 1:
        return 'width or height below 1 pixel'
    if area <= 0:
        return 'area of 0'
    if min(x + width, size[0]) <= max(x, 0) or min(y + height, size[1]) <= max(y, 0):
        return 'outside the image'
    return ''


def _are_corners(annotations: Sequence[Mapping], sizes: Mapping) -> bool:
    """Return whether most boxes leave their image, and all fit as corners."""
    leaving = total = 0
    for annotation in annotations:
        size = sizes.get(annotation['image_id'])
        if size is None:
            continue
        x, y, width, height = annotation['bbox']
        if not (x < width <= size[0] + 1 and y < height <= size[1] + 1):
            return False
        total += 1
        leaving += x + width > size[0] + 1 or y + height > size[1] + 1
    return total >= ENOUGH_BOXES and 2 * leaving > total


def _count(examples: Sequence[str]) -> str:
    boxes = 'box' if len(examples) == 1 else 'boxes'
    return f'{len(examples)} {boxes} (first {examples[0]})'
