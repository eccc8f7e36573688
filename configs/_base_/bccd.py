# BCCD, blood cells with boxes, written by tools/prepare_data.py. At 384x288 instead of
# 640x480, for CPUs: cells have 40 to 150 pixels there, platelets 15 to 40.
bccd_root = 'data/bccd/'
bccd_metainfo = dict(
    classes=('RBC', 'WBC', 'Platelets'),
    palette=[(230, 25, 75), (0, 130, 200), (60, 180, 75)],
)
# Of the training images, which are bright and have a third of ImageNet's contrast: with
# its mean and standard deviation, PVTv2 does not learn in 150 iterations.
bccd_normalization = dict(mean=[188.0, 177.5, 182.3], std=[15.5, 26.0, 19.3])
_resize = dict(type='Resize', scale=(384, 288), keep_ratio=True)

bccd_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    _resize,
    # A microscope has no up and no left.
    dict(
        type='RandomFlip',
        prob=[0.25] * 3,
        direction=['horizontal', 'vertical', 'diagonal'],
    ),
    dict(type='PhotoMetricDistortion', hue_delta=9),
    dict(type='PackDetInputs'),
]
bccd_test_pipeline = [
    dict(type='LoadImageFromFile'),
    _resize,
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Prefixed names, so that a config can also inherit the data loaders of a detector.
bccd_train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # the training needs the CPU core
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        metainfo=bccd_metainfo,
        data_root=bccd_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/'),
        pipeline=bccd_train_pipeline,
    ),
)
bccd_val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=bccd_metainfo,
        data_root=bccd_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='images/'),
        test_mode=True,
        pipeline=bccd_test_pipeline,
    ),
)
bccd_test_dataloader = dict(**bccd_val_dataloader)
bccd_test_dataloader.update(
    dataset=dict(bccd_val_dataloader['dataset'], ann_file='annotations/test.json')
)
bccd_val_evaluator = dict(
    type='CocoMetric', ann_file=bccd_root + 'annotations/val.json', metric='bbox'
)
bccd_test_evaluator = dict(
    bccd_val_evaluator, ann_file=bccd_root + 'annotations/test.json'
)
