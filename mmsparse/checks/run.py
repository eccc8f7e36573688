"""Run the checks of a config and its data in order."""

import importlib
from collections.abc import Mapping, Sequence

from mmengine.config import Config
from mmengine.registry import DefaultScope, Registry

from mmsparse.checks import segmentation
from mmsparse.checks.channels import check_channels
from mmsparse.checks.classes import (
    Classes,
    check_heads,
    check_same_classes,
    has_fixed_classes,
    metrics_of,
)
from mmsparse.checks.coco import (
    check_boxes,
    check_coco,
    check_evaluator_file,
    check_queries,
    uses_coco_files,
)
from mmsparse.checks.contrast import check_contrast
from mmsparse.checks.data import Data, has_json, listed, read_datasets
from mmsparse.checks.folders import (
    check_same_folders,
    check_samples,
    class_folders,
    empty_folders,
    read_data_list,
    read_lines,
    unused_images,
    uses_class_folders,
    uses_label_file,
)
from mmsparse.checks.keywords import LOADERS, check_keywords, type_name
from mmsparse.checks.names import misspelled
from mmsparse.checks.optimizer import check_optimizer
from mmsparse.checks.pretrained import check_pretrained, untrained_norms
from mmsparse.checks.schedule import check_schedule
from mmsparse.checks.voc import check_xml, uses_xml_files
from mmsparse.errors import UsageError


def check_config(cfg: Config, host: str, training: bool = True) -> None:
    """Raise UsageError for settings that are wrong whatever the data are.

    For a training MissingFileError is raised unless all files of weights exist.

    Args:
        cfg: The config.
        host: Its library: mmdet, mmseg or mmpretrain.
        training: Whether the model is trained; else only what inference uses counts.
    """
    check_keywords(cfg, host, training)
    check_channels(cfg)
    if host == 'mmseg':
        segmentation.check_crops(cfg)
    if training:
        check_pretrained(cfg)
        check_optimizer(cfg, host)
        check_schedule(cfg)
        if host == 'mmseg':
            segmentation.check_pooling(cfg)


def check_data(cfg: Config, host: str, loaders: Sequence[str] = LOADERS) -> list[str]:
    """Raise UsageError unless the data of loaders fit each other and the model.

    Args:
        cfg: The config.
        host: Its library.
        loaders: Names of the loaders that are used.

    Returns:
        What is certainly not meant but harmless, such as boxes that mmdet drops, one
        line each.
    """
    library = importlib.import_module(f'{host}.registry')
    found = {name: read_datasets(cfg, host, name) for name in loaders}
    notes, classes = [], []
    if LOADERS[0] in loaders:
        notes += untrained_norms(cfg) + misspelled(cfg)
    for name, datasets in found.items():
        local = [x for x in datasets if x.is_local]
        for data in local:
            with DefaultScope.overwrite_default_scope(host):
                alone = name == LOADERS[0] and len(datasets) == 1
                notes += _check_content(data, library.DATASETS, cfg, alone)
        classes += _classes(datasets, local, library.DATASETS)
        if name == LOADERS[0]:
            notes += _check_boxes(datasets, local, library.DATASETS, host)
            notes += [note for data in local for note in check_contrast(cfg, data)]
        batch_size = (cfg.get(name) or {}).get('batch_size') or 1
        if host == 'mmseg' and name != LOADERS[0] and batch_size > 1:
            for data in local:
                segmentation.check_batches(data, batch_size)
        evaluator = name.replace('dataloader', 'evaluator')
        for path, metric in metrics_of(cfg, evaluator):
            check_evaluator_file(path, metric, local)
            if type_name(metric) == 'IoUMetric':
                _check_named(path, datasets)
    _check_folders(found, library.DATASETS)
    notes += _shared_files(found)
    if classes and has_fixed_classes(cfg.get('model')):
        for other in classes[1:]:
            check_same_classes(classes[0], other)
        check_heads(cfg, classes[0], host, library.MODELS)
    return notes


def _check_content(
    data: Data, datasets: Registry, cfg: Config, alone: bool
) -> list[str]:
    """Check the files of a data set, alone in its training or not; return notes."""
    training = data.loader == LOADERS[0]
    if uses_coco_files(data, datasets):
        notes = check_coco(data, training)
        return notes + check_queries(data, cfg.get('model') or {})
    if uses_xml_files(data, datasets):
        return check_xml(data, alone)
    if hasattr(data.dataset, 'seg_map_suffix') and hasattr(data.dataset, 'img_suffix'):
        return segmentation.check_label_maps(data, alone)
    if uses_class_folders(data, datasets):
        return _check_class_folders(data, training)
    if uses_label_file(data, datasets):
        notes = check_samples(data, read_lines(data), cfg.get('model') or {})
        return notes if training else []
    if hasattr(data.dataset, 'get_gt_labels') and has_json(data.dataset):
        notes = check_samples(data, read_data_list(data), cfg.get('model') or {})
        return notes if training else []
    return []


def _check_boxes(
    datasets: Sequence[Data], local: Sequence[Data], registry: Registry, host: str
) -> list[str]:
    """Check that the training has boxes, if its files can all be read."""
    with DefaultScope.overwrite_default_scope(host):
        known = [x for x in local if uses_coco_files(x, registry)]
    return check_boxes(known) if known and len(known) == len(datasets) else []


def _check_class_folders(data: Data, training: bool) -> list[str]:
    folders, empty = class_folders(data), empty_folders(data)
    if len(empty) == len(folders):
        raise UsageError(
            f'{data.path}: no images in the class folders of '
            f'{data.dataset.img_prefix}; extensions are '
            f'{", ".join(sorted(data.dataset.extensions))}.'
        )
    if not training:
        return []
    notes = []
    if empty:
        notes += [f'{data.path}: no images in the class folders {listed(empty, 10)}.']
    if unused := unused_images(data):
        notes += [
            f'{data.path}: {len(unused)} images are not used, such as {unused[0]}; add '
            f'their extension to extensions, or convert them.'
        ]
    return notes


def _check_named(metric: str, datasets: Sequence[Data]) -> None:
    for data in datasets:
        if not data.classes:
            raise UsageError(
                f'{data.path}.metainfo has no classes, which {metric} needs; set '
                f'metainfo=dict(classes=(...)) for every data set.'
            )


def _check_folders(found: dict[str, list[Data]], datasets: Registry) -> None:
    by_folder = [
        data
        for group in found.values()
        for data in group
        if data.is_local and uses_class_folders(data, datasets)
    ]
    for other in by_folder[1:]:
        check_same_folders(by_folder[0], other)


def _shared_files(found: Mapping[str, Sequence[Data]]) -> list[str]:
    """Return a note if a test set has the files of the training."""
    files = {
        data.path: (
            data.dataset.ann_file,
            str(data.dataset.data_prefix),
            data.settings.get('split'),
        )
        for group in found.values()
        for data in group
        if data.is_local and not (data.is_fold or data.has_indices)
    }
    train = {x: path for path, x in files.items() if path.startswith(LOADERS[0])}
    return [
        f'{path} has the files of {train[x]}: its metrics are of training images.'
        for path, x in files.items()
        if x in train and path != train[x] and not path.startswith(LOADERS[0])
    ]


def _classes(
    datasets: Sequence[Data], local: Sequence[Data], registry: Registry
) -> list[Classes]:
    """Return the classes of every data set of images that has names for them."""
    found = []
    for data in datasets:
        names = data.classes
        if not names and data in local and uses_class_folders(data, registry):
            names = class_folders(data)
        if names and not data.has_videos:
            found.append(Classes.of(data, names))
    return found
