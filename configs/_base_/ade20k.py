# ADE20K at 512x512 as in mmseg, with a check of every label map.
_base_ = [
    './onedl.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    './mmsparse.py',
]

_load = dict(type='LoadImageFromFile')
_labels = [  # loaded after resizing: results are compared at the original size
    dict(type='LoadAnnotations'),
    dict(type='mmsparse.CheckSegLabels', num_classes=150),
]
_pack = dict(type='PackSegInputs')
_resize = dict(type='Resize', scale=(2048, 512), keep_ratio=True)
# Resize sides to multiples of the last stride, as PVT and its successors test Semantic
# FPN.
_align = dict(type='ResizeToMultiple', size_divisor=32)
# Scales are relative to the resized image, as in the papers; mmseg's are to the file.
_scales = [
    dict(_resize, scale=(int(2048 * ratio), int(512 * ratio)))
    for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
]
_flips = [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)]
_packs = [_pack]

train_pipeline = [_load, *_labels, *_base_.train_pipeline[2:]]
test_pipeline = [_load, _resize, *_labels, _pack]
aligned_test_pipeline = [_load, _resize, _align, *_labels, _pack]

# tools/test.py --tta: every image at six scales, each with its flip. Choose another
# pipeline by name, for example --tta flip_pipeline.
_then = [_flips, _labels[:1], _labels[1:], _packs]
tta_pipeline = [_load, dict(type='TestTimeAug', transforms=[_scales, *_then])]
flip_pipeline = [_load, dict(type='TestTimeAug', transforms=[[_resize], *_then])]
aligned_tta_pipeline = [
    _load,
    dict(type='TestTimeAug', transforms=[_scales, [_align], *_then]),
]
aligned_flip_pipeline = [
    _load,
    dict(type='TestTimeAug', transforms=[[_resize], [_align], *_then]),
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# Synchronize BatchNorm of the backbone over all GPUs, like that of the heads.
sync_bn = 'torch'
