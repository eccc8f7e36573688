"""Check crops, files and label maps of mmseg configs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv import rescale_size
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from PIL import Image

from mmsparse.checks.data import IMAGES, Data, listed, missing_files, names_in
from mmsparse.checks.keywords import dataset_settings, find_class, type_name
from mmsparse.datasets.transforms import IGNORED, ORIENTATION, SIDEWAYS
from mmsparse.errors import UsageError

MOST_FILES = 1000  # to read before training
POOLING = ('UPerHead', 'PSPHead', 'ASPPHead', 'DepthwiseSeparableASPPHead')
KNOWN = ('mmcv', 'mmdet', 'mmseg', 'mmsparse')  # their transforms keep all labels
# Transforms that keep the size of an image.
SAME_SIZE = {'LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs', 'CheckSegLabels'}


def check_crops(cfg: Config) -> None:
    """Raise UsageError unless crops fit into the padded images and leave no gaps."""
    model = cfg.get('model') or {}
    if 'decode_head' not in model:
        return
    preprocessor = model.get('data_preprocessor') or {}
    train = _pipeline(cfg.get('train_dataloader'))
    _check_training_crop(train, preprocessor.get('size'))
    test = model.get('test_cfg') or {}
    if test.get('mode') == 'slide':
        _check_windows(test)
        pipeline = _pipeline(cfg.get('test_dataloader'))
        padding = preprocessor.get('test_cfg') or {}
        _check_window_size(test['crop_size'], pipeline, padding)


def _pipeline(loader: Mapping[str, Any] | None) -> Sequence[Mapping]:
    pipelines = (x.get('pipeline') for _, x in dataset_settings('', loader))
    return next(filter(None, pipelines), [])


def _check_training_crop(pipeline: Sequence[Mapping], padded: Any) -> None:
    crops = [x['crop_size'] for x in pipeline if type_name(x) == 'RandomCrop']
    if not crops or padded is None:
        return
    crop, padded = _pair(crops[-1]), _pair(padded)
    if crop[0] > padded[0] or crop[1] > padded[1]:
        raise UsageError(
            f'RandomCrop: crop_size={crop} is larger than the padded image, '
            f'model.data_preprocessor.size={padded}; set both to the same size.'
        )


def _check_windows(test: Mapping[str, Any]) -> None:
    if missing := {'crop_size', 'stride'} - test.keys():
        raise UsageError(
            f"model.test_cfg: mode='slide' needs {' and '.join(sorted(missing))}; got "
            f'{dict(test)}.'
        )
    crop, stride = _pair(test['crop_size']), _pair(test['stride'])
    if min(stride) < 1 or stride[0] > crop[0] or stride[1] > crop[1]:
        raise UsageError(
            f'model.test_cfg: stride must be from 1 to crop_size={crop}, or windows '
            f'leave gaps; got stride={stride}.'
        )


def _check_window_size(
    crop: Any, pipeline: Sequence[Mapping], padding: Mapping[str, Any]
) -> None:
    resizes = [x for x in pipeline if type_name(x) == 'Resize' and x.get('scale')]
    if not resizes:
        return  # images may have any size
    order = sorted if resizes[-1].get('keep_ratio') else tuple  # portrait or landscape
    scale = _pair(resizes[-1]['scale'])[::-1]
    sizes = _pair(crop), scale, _pair(padding.get('size') or 0)
    crop, scale, sides = (tuple(order(size)) for size in sizes)
    divisor = padding.get('size_divisor') or 1
    largest = tuple(
        max(-(-length // divisor) * divisor, side)
        for length, side in zip(scale, sides, strict=True)
    )
    if crop[0] > largest[0] or crop[1] > largest[1]:
        raise UsageError(
            f'model.test_cfg: crop_size={crop} is larger than any padded image of '
            f'the test pipeline, {largest}; reduce crop_size or increase the scale of '
            f'Resize.'
        )


def check_label_maps(data: Data, alone: bool) -> list[str]:
    """Raise UsageError unless a data set of mmseg finds all images and label maps.

    Data sets that find their files in another way are not checked.

    Args:
        data: The data set.
        alone: Whether it must have all classes, as the only one of a training.

    Returns:
        A note of classes that never occur, and of labels that are no class.
    """
    dataset = data.dataset
    folder = (dataset.data_prefix or {}).get('img_path')
    if not folder or not isinstance(dataset.img_suffix, str):
        return []
    folder = Path(folder)
    items = dataset.load_data_list()
    if not items:
        raise UsageError(
            f'{data.loader}: no images *{dataset.img_suffix} in {folder}; found '
            f'{listed(names_in(folder)) or "no files"}; change img_suffix or '
            f'data_prefix.'
        )
    _check_numbers(data)
    if data.has_indices:
        return []
    labels = [Path(item['seg_map_path']) for item in items if 'seg_map_path' in item]
    images = [Path(item['img_path']) for item in items]
    _check_files(data, 'label', labels, 'seg_map_suffix')
    _check_files(data, 'image', images, 'img_suffix')
    known = type(dataset).load_data_list.__module__.startswith('mmseg.')
    if known and not dataset.ann_file:
        _check_suffixes(data, folder, items)
    mapped = any(item.get('label_map') for item in items) or _maps_labels(data)
    if not alone or len(data.classes) < 2 or mapped:
        return []
    return _check_values(data, labels)


def _check_files(data: Data, kind: str, paths: Sequence[Path], setting: str) -> None:
    if missing := missing_files(paths):
        found = listed(names_in(missing[0].parent)) or 'no files'
        raise UsageError(
            f'{data.loader}: {len(missing)} of {len(paths)} {kind} files are missing, '
            f'first {missing[0]}; found {found}; change '
            f'{setting}={getattr(data.dataset, setting)!r} or add the files.'
        )


def _maps_labels(data: Data) -> bool:
    """Return whether a transform may change labels: one of the user."""
    steps = data.settings.get('pipeline') or []
    with TRANSFORMS.switch_scope_and_registry(None) as registry:
        classes = [find_class(registry, step.get('type')) for step in steps]
    return any(
        cls is None or cls.__module__.partition('.')[0] not in KNOWN for cls in classes
    )


def _check_suffixes(data: Data, folder: Path, items: Sequence[Mapping]) -> None:
    """Raise UsageError if other images than those with ``img_suffix`` have labels."""
    suffix = data.dataset.img_suffix
    label_folder = data.dataset.data_prefix.get('seg_map_path')
    if not label_folder or folder.samefile(label_folder):
        return
    used = {Path(item['img_path']) for item in items}
    labels = {Path(item['seg_map_path']) for item in items}
    ending = suffix.rpartition('.')[0]
    labeled = []
    for path in sorted(folder.rglob('[!.]*')):
        if path.suffix.lower() not in IMAGES or path in used:
            continue
        name = path.relative_to(folder).with_suffix('').as_posix()
        label = name.removesuffix(ending) + data.dataset.seg_map_suffix
        label = Path(label_folder, label)
        if name.endswith(ending) and label.is_file() and label not in labels:
            labeled.append(path)
    if labeled:
        raise UsageError(
            f'{data.path}.img_suffix={suffix!r}: {len(labeled)} of '
            f'{len(labeled) + len(used)} labeled images in {folder} end otherwise and '
            f'would not be used, first {labeled[0].name}; rename them to *{suffix}.'
        )


def _check_numbers(data: Data) -> None:
    """Raise UsageError unless CheckSegLabels has the number of classes."""
    count = len(data.classes)
    for i, step in enumerate(data.settings.get('pipeline') or []):
        if type_name(step) == 'CheckSegLabels' and step.get('num_classes') != count:
            raise UsageError(
                f'{data.path}.pipeline[{i}].num_classes={step.get("num_classes")}, but '
                f'the data set has {count} classes: {listed(data.classes)}; set it to '
                f'{count}.'
            )


def _check_values(data: Data, labels: Sequence[Path]) -> list[str]:
    """Raise UsageError if all label maps have one class, the same in all pixels.

    Return a note of the classes that never occur. Files are read until all classes
    have occurred; with too many files nothing is known.
    """
    reduced = int(bool(data.dataset.reduce_zero_label))
    number = len(data.classes)
    classes = set(range(reduced, number + reduced))
    ignored = {IGNORED, data.dataset.ignore_index, *range(reduced)}
    seen: set[int] = set()
    for path in labels[:MOST_FILES]:
        try:
            seen |= _values(path)
        except OSError:  # reported with its name when it is loaded
            return []
        if classes <= seen:
            return _other_values(data, seen - classes - ignored)
    if not labels or len(labels) > MOST_FILES:
        return []
    if len(classes & seen) < 2 and seen - ignored <= classes | {0}:
        found = ', '.join(map(str, sorted(seen)))
        raise UsageError(
            f'{data.path}: all {len(labels)} label maps have the values {found} only, '
            f'at most one of the {number} classes ({IGNORED} is ignored); labels must '
            f'be class indices from {reduced}, for example 1 instead of 255 in masks.'
        )
    absent = [data.classes[x - reduced] for x in sorted(classes - seen)]
    notes = [f'{data.path}: no pixel has the classes {listed(absent, 10)}.']
    return notes + _other_values(data, seen - classes - ignored)


def _other_values(data: Data, values: set[int]) -> list[str]:
    if not values:
        return []
    first = int(bool(data.dataset.reduce_zero_label))
    return [
        f'{data.path}: label maps have the values {listed(sorted(values), 10)}, which '
        f'are no class; labels must be from {first} to '
        f'{len(data.classes) + first - 1}, or {IGNORED} to be ignored.'
    ]


def _values(path: Path) -> set[int]:
    with Image.open(path) as image:
        values = np.asarray(image)
    if values.dtype == np.uint8:  # faster than np.unique
        return set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist())
    return set(np.unique(values).tolist())


def check_batches(data: Data, batch_size: int) -> None:
    """Raise UsageError if a test batch has images of different sizes.

    The sizes are those after ``Resize``, read from the headers of the files. Other
    pipelines are not checked.
    """
    sizes = _resized_sizes(data)
    for start in range(0, len(sizes), batch_size):
        batch = sizes[start : start + batch_size]
        if len(set(batch)) > 1:
            (height, width), (other_height, other_width) = sorted(set(batch))[:2]
            raise UsageError(
                f'{data.loader}.batch_size={batch_size}, but mmseg evaluates batches '
                f'of images of one size; got {width}x{height} and '
                f'{other_width}x{other_height} pixels in one batch. Set '
                f'{data.loader}.batch_size=1.'
            )


def _resized_sizes(data: Data) -> list[tuple[int, int]]:
    """Return height and width of all images after the pipeline; [] if unknown."""
    pipeline = data.settings.get('pipeline') or []
    types = [type_name(x) for x in pipeline]
    if not set(types) <= SAME_SIZE | {'Resize'} or types.count('Resize') > 1:
        return []
    resize = pipeline[types.index('Resize')] if 'Resize' in types else {}
    if resize.get('scale') and not resize.get('keep_ratio'):
        return []
    sizes = []
    for item in data.dataset.load_data_list()[:MOST_FILES]:
        try:
            with Image.open(item['img_path']) as image:
                rotated = image.getexif().get(ORIENTATION) in SIDEWAYS
                width, height = image.size[::-1] if rotated else image.size
        except OSError:
            return []
        if resize.get('scale'):
            width, height = rescale_size((width, height), _pair(resize['scale']))
        sizes.append((height, width))
    return sizes


def check_pooling(cfg: Config) -> None:
    """Raise UsageError for batch normalization of a single value in training.

    Heads that pool to 1x1 pixels have one value per channel and image.
    """
    size = (cfg.get('train_dataloader') or {}).get('batch_size')
    processes = cfg.get('launcher', 'none') != 'none'
    for part in ('decode_head', 'auxiliary_head'):
        heads = (cfg.get('model') or {}).get(part) or []
        for head in [heads] if isinstance(heads, Mapping) else heads:
            norm = type_name(head.get('norm_cfg') or {})
            pools = type_name(head) in POOLING and 1 in head.get('pool_scales', (1,))
            one = size == 1 and not (processes and norm == 'SyncBN')
            if pools and one and norm in ('BN', 'SyncBN'):
                raise UsageError(
                    f'train_dataloader.batch_size=1: {norm} in model.{part}, '
                    f'{type_name(head)}, would normalize a single value per channel; '
                    f'set batch_size to at least 2, or norm_cfg to another type such '
                    f"as dict(type='GN', num_groups=32)."
                )


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
