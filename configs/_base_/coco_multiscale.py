# DETR's augmentation, and a schedule of 36 epochs. Use them as {{_base_.NAME}}.
_short_sides = [(side, 1333) for side in range(480, 801, 32)]
_resize = dict(type='RandomChoiceResize', scales=_short_sides, keep_ratio=True)
_small = [(400, 1333), (500, 1333), (600, 1333)]
_crop = [
    dict(type='RandomChoiceResize', scales=_small, keep_ratio=True),
    dict(
        type='RandomCrop',
        crop_type='absolute_range',
        crop_size=(384, 600),
        allow_negative_crop=True,
    ),
]
_augment = [
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandomChoice', transforms=[[_resize], [*_crop, _resize]]),
    dict(type='PackDetInputs'),
]
_load = dict(type='LoadImageFromFile')
multiscale_with_boxes = [
    _load,
    dict(type='LoadAnnotations', with_bbox=True),
    *_augment,
]
multiscale_with_masks = [
    _load,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    *_augment,
]
schedule_3x = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=36, by_epoch=True, milestones=[27, 33]),
]
