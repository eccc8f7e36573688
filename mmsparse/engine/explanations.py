"""Explain frequent errors of training and evaluation by the setting to change."""

import re
import traceback

from torch import nn

from mmsparse.errors import format_error

CLASSES = (
    'set num_classes of every head to the number of classes of the data; labels count '
    'from 0'
)
LABELS = (
    'add LoadAnnotations to {stage}_dataloader.dataset.pipeline, before Pack*Inputs'
)
META = (
    'PackDetInputs of {stage}_dataloader.dataset.pipeline needs Resize before it and '
    "meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')"
)

# Regular expressions of the traceback, with what to do; {stage} is train, val or test.
EXPLANATIONS = {
    'Expected more than 1 value per channel when training': (
        'BatchNorm cannot normalize one image with one value per channel; set '
        'train_dataloader.batch_size to at least 2 and train_dataloader.drop_last to '
        'True, or norm_eval=True of a pretrained backbone, or norm_cfg of a head to '
        "dict(type='SyncBN') with several GPUs, or to dict(type='GN', num_groups=32)"
    ),
    '(?s)in default_collate.*stack expects each tensor to be equal size': (
        'images of a batch have different sizes; give them one size at the end of '
        '{stage}_dataloader.dataset.pipeline, for example by CenterCrop or Resize with '
        'scale=(width, height), or set {stage}_dataloader.batch_size=1'
    ),
    'The image size in a batch should be the same': (
        'set {stage}_dataloader.batch_size=1, or give images one size by Resize with '
        'keep_ratio=False'
    ),
    'only one of size and size_divisor should be valid': (
        'set model.data_preprocessor.size=(height, width), the crop_size of RandomCrop'
    ),
    r'Class values must be smaller than num_classes|Target \d+ is out of bounds'
    '|Class Index must be less than number of classes': CLASSES,
    '(?s)in results2json.*list index out of range': (
        'num_classes of a head of the model is larger than the number of names in '
        '{stage}_dataloader.dataset.metainfo.classes; ' + CLASSES
    ),
    'Results do not correspond to current coco set': (
        'set {stage}_evaluator.ann_file to the ann_file of {stage}_dataloader.dataset, '
        'with data_root'
    ),
    '(?s)in intersect_and_union.*does not match the shape': (
        'move LoadAnnotations behind Resize in {stage}_dataloader.dataset.pipeline: '
        'label maps are compared at their original size'
    ),
    "KeyError: 'gt_sem_seg'|no attribute '_gt_sem_seg'"
    "|'InstanceData' object has no attribute 'bboxes'"
    "|(?s:voc_metric.*KeyError: 'labels')": LABELS,
    "(KeyError:|no attribute) 'gt_label'": (
        'images of {stage}_dataloader.dataset have no labels: set with_label=True, and '
        'put images into one folder per class'
    ),
    "'InstanceData' object has no attribute 'masks'": (
        'the model needs masks: set with_mask=True of LoadAnnotations in '
        '{stage}_dataloader.dataset.pipeline'
    ),
    'segm is not in results': (
        "the model predicts no masks; set {stage}_evaluator.metric='bbox'"
    ),
    r"KeyError: '(img_id|scale_factor)'|assert img_meta\.get\('scale_factor'\)"
    "|no attribute '(img_shape|ori_shape|scale_factor)'": META,
    "(?s)data_preprocessor.*KeyError: 'inputs'": (
        'end {stage}_dataloader.dataset.pipeline with PackInputs (mmpretrain), '
        'PackDetInputs (mmdet) or PackSegInputs (mmseg)'
    ),
    r'Top-\d+ accuracy is unavailable': (
        'set topk of val_evaluator, of test_evaluator and, with cal_acc, of model.head '
        'to at most the number of classes'
    ),
    '(?s)in pre_decoder.*selected index k out of range': (
        'an image has fewer tokens than model.num_queries: lower it, or enlarge images'
    ),
    r'(?s)metrics\[key_indicator\].*KeyError': (
        'default_hooks.checkpoint.save_best is not a metric of val_evaluator; its '
        "metrics are in the log; 'auto' is the first of them"
    ),
    r'expected input\[.*to have \d+ channels, but got \d+ channels'
    '|mat1 and mat2 shapes cannot be multiplied': (
        'set its in_channels to those of the layer before it, or change out_indices of '
        'the backbone'
    ),
    'Expected to have finished reduction in the prior iteration': (
        'a parameter got no gradient; set find_unused_parameters=True'
    ),
    r'DataLoader worker \(.*(killed by signal|exited unexpectedly)': (
        'usually memory or /dev/shm is full; lower {stage}_dataloader.num_workers'
    ),
    'device-side assert triggered': (
        'a label or index is out of range, or a prediction NaN; repeat with '
        'CUDA_LAUNCH_BLOCKING=1, or with CUDA_VISIBLE_DEVICES= on the CPU, to see where'
    ),
    'CUDA out of memory': (
        'lower {stage}_dataloader.batch_size or the size of images, or set '
        'model.backbone.with_cp=True or optim_wrapper.type=AmpOptimWrapper'
    ),
}


def explain(error: Exception, stage: str) -> str:
    """Return an error, its module and what to do in one line, '' if it is not known.

    ``stage`` is train, val or test.
    """
    text = ''.join(traceback.format_exception(error, chain=False))
    for pattern, advice in EXPLANATIONS.items():
        if re.search(pattern, text):
            reason = format_error(error).rstrip('.')
            return f'{_place(error)}{reason}: {advice.format(stage=stage)}.'
    return ''


def _place(error: Exception) -> str:
    """Return the name of the innermost module of the model that an error passed."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    passed = [frame.f_locals.get('self') for frame in frames]
    passed = [module for module in passed if isinstance(module, nn.Module)]
    if not passed:
        return ''
    names = {module: name for name, module in passed[0].named_modules()}
    name = next((names[x] for x in reversed(passed) if names.get(x)), '')
    return f'{name.removeprefix("module.")}: ' if name else ''
