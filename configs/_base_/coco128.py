# COCO128, 128 + 128 photographs of COCO with boxes of its 80 classes, written by
# tools/prepare_data.py. At 320 pixels instead of 640, for CPUs.
coco128_root = 'data/coco128/'
_resize = dict(type='Resize', scale=(320, 320), keep_ratio=True)

coco128_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    _resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
coco128_test_pipeline = [
    dict(type='LoadImageFromFile'),
    _resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Prefixed names, so that a config can also inherit the data loaders of a detector.
coco128_train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # the training needs the CPU core
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=coco128_root,
        ann_file='annotations/boxes_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True),  # two photographs have no object
        pipeline=coco128_train_pipeline,
    ),
)
coco128_val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=coco128_root,
        ann_file='annotations/boxes_val2017.json',
        data_prefix=dict(img='val2017/'),
        test_mode=True,
        pipeline=coco128_test_pipeline,
    ),
)
coco128_evaluator = dict(
    type='CocoMetric',
    ann_file=coco128_root + 'annotations/boxes_val2017.json',
    metric='bbox',
)
