"""Switch a config to test-time augmentation, by default with flipped images."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from mmsparse.apis.config import find_host
from mmsparse.checks.keywords import dataset_settings, type_name
from mmsparse.errors import UsageError

PIPELINE = 'tta_pipeline'
# Models that merge predictions, the defaults of mmdet's and mmpretrain's test.py.
TTA_MODELS = {
    'mmpretrain': dict(type='AverageClsScoreTTA'),
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
}


def use_tta(cfg: Config, pipeline: str = PIPELINE) -> None:
    """Switch a config to test-time augmentation, in place.

    ``pipeline`` is the name of a pipeline in the config. Without ``tta_pipeline`` every
    image is predicted as it is and flipped, by the test pipeline; without
    ``tta_model`` predictions are merged by the default of the library. UsageError is
    raised if the config has no such pipeline, or masks, which mmdet cannot merge.
    """
    if pipeline != PIPELINE and pipeline not in cfg:
        raise UsageError(f'--tta needs {pipeline} in the config')
    for _, dataset in dataset_settings('test_dataloader', cfg.test_dataloader):
        if pipeline in cfg and 'pipeline' in dataset:
            dataset['pipeline'] = cfg[pipeline]
        elif 'pipeline' in dataset:
            dataset['pipeline'] = _flipped(dataset['pipeline'])
    tta_model = cfg.get('tta_model') or TTA_MODELS[find_host(cfg)]
    _check_masks(cfg, tta_model)
    cfg.model = dict(**tta_model, module=cfg.model)


def _flipped(pipeline: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a test pipeline that yields every image as it is, and flipped.

    Labels are loaded after the flip, so that they stay those of the image itself, as
    predictions do.
    """
    names = [type_name(transform) for transform in pipeline]
    labels = (i for i, name in enumerate(names) if name.endswith('Annotations'))
    start = next(labels, len(pipeline) - 1)
    *steps, pack = pipeline[start:]
    if 'meta_keys' in pack:
        pack = dict(pack, meta_keys=(*pack['meta_keys'], 'flip', 'flip_direction'))
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
    transforms = [flips, *([step] for step in (*steps, pack))]
    return [*pipeline[:start], dict(type='TestTimeAug', transforms=transforms)]


def _check_masks(cfg: Config, tta_model: Mapping[str, Any]) -> None:
    roi_head = cfg.model.get('roi_head') or {}
    if type_name(tta_model) == 'DetTTAModel' and roi_head.get('mask_head'):
        raise UsageError(
            '--tta: mmdet merges boxes of augmented images, but no masks; got '
            'model.roi_head.mask_head. Test without --tta.'
        )
