"""Check crops, classes and files of mmseg configs, which mmseg checks late or never."""

import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmsparse.errors import UsageError


def check_crops(cfg: Config) -> None:
    """Raise UsageError unless crops fit into the padded images and leave no gaps.

    Only configs of mmseg are checked.
    """
    model = cfg.get('model') or {}
    if cfg.get('default_scope') != 'mmseg' or 'decode_head' not in model:
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
    dataset = (loader or {}).get('dataset', {})
    return dataset.get('pipeline', dataset.get('dataset', {}).get('pipeline', []))


def _check_training_crop(pipeline: Sequence[Mapping], padded: Any) -> None:
    crops = [step['crop_size'] for step in pipeline if step['type'] == 'RandomCrop']
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
    resizes = [x for x in pipeline if x['type'] == 'Resize' and x.get('scale')]
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


def check_dataset(name: str, settings: Mapping[str, Any], model: Any) -> None:
    """Raise UsageError unless a dataset of mmseg has its files and the model's classes.

    ``name`` is that of the dataloader, for the message.
    """
    if settings.get('backend_args'):
        return  # in another file system
    dataset = build_dataset(settings)
    folder = Path(dataset.data_prefix['img_path'])
    items = dataset.load_data_list() if folder.is_dir() else []
    if not items:
        raise UsageError(
            f'{name}: no images *{dataset.img_suffix} in {folder}; found '
            f'{_examples(folder)}; change img_suffix or data_prefix.'
        )
    labels = [Path(item['seg_map_path']) for item in items if 'seg_map_path' in item]
    if missing := _missing(labels):
        raise UsageError(
            f'{name}: {len(missing)} of {len(labels)} label files are missing, first '
            f'{missing[0]}; found {_examples(missing[0].parent)}; change '
            f'seg_map_suffix={dataset.seg_map_suffix!r} or add the files.'
        )
    _check_classes(name, dataset.metainfo.get('classes'), model)


def build_dataset(settings: Mapping[str, Any]) -> Any:
    """Build a dataset of mmseg without reading its files, and without a pipeline."""
    datasets = importlib.import_module('mmseg.registry').DATASETS
    with DefaultScope.overwrite_default_scope('mmseg'):
        return datasets.build(dict(settings, pipeline=[], lazy_init=True))


def _check_classes(name: str, classes: Sequence[str] | None, model: Any) -> None:
    for part in ('decode_head', 'auxiliary_head'):
        heads = model.get(part) or []
        for head in heads if isinstance(heads, Sequence) else [heads]:
            number = head.get('num_classes')
            if classes and number is not None and number != len(classes):
                raise UsageError(
                    f'model.{part}.num_classes={number}, but the dataset of {name} '
                    f'has {len(classes)} classes: {_shown(classes)}. Set num_classes '
                    f'of every head and of CheckSegLabels to {len(classes)}.'
                )


def _missing(paths: Collection[Path]) -> list[Path]:
    """Return the paths that do not exist; lists each folder once."""
    folders = {path.parent for path in paths if path.parent.is_dir()}
    present = {path for folder in folders for path in folder.iterdir()}
    return [path for path in paths if path not in present]


def _examples(folder: Path) -> str:
    names = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
    return _shown(names) if names else 'no files'


def _shown(names: Sequence[str]) -> str:
    more = f' and {len(names) - 3} more' if len(names) > 3 else ''
    return ', '.join(names[:3]) + more


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
