# Images of several digits with boxes and masks, 128x128, written by
# tools/prepare_digits.py
digits_root = 'data/digits/detection/'
metainfo = dict(
    classes=tuple('0123456789'),
    palette=[
        (230, 25, 75),
        (60, 180, 75),
        (255, 225, 25),
        (0, 130, 200),
        (245, 130, 48),
        (145, 30, 180),
        (70, 240, 240),
        (240, 50, 230),
        (210, 245, 60),
        (250, 190, 212),
    ],
)

digits_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
digits_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

# Prefixed names, so that a config can also inherit the data loaders of a detector.
digits_train_dataloader = dict(
    batch_size=4,
    num_workers=0,  # two CPU cores leave none for loading
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo,
        data_root=digits_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        pipeline=digits_train_pipeline,
    ),
)
digits_val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo,
        data_root=digits_root,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=digits_test_pipeline,
    ),
)
digits_evaluator = dict(
    type='CocoMetric', ann_file=digits_root + 'annotations/val.json', metric='bbox'
)
