# CamVid, street scenes with label maps of 11 classes at 480x360, written by
# tools/prepare_data.py. Void is 255 there, which losses and metrics ignore.
data_root = 'data/camvid'
metainfo = dict(
    classes=(
        *('sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence'),
        *('car', 'pedestrian', 'bicyclist'),
    ),
    palette=[
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ],
)
_load = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmsparse.CheckSegLabels', num_classes=11),
]

train_pipeline = [
    *_load,
    dict(
        type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.5), keep_ratio=True
    ),
    dict(type='RandomCrop', crop_size=(256, 256), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [*_load, dict(type='PackSegInputs')]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,  # the training needs the CPU core
    persistent_workers=False,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='BaseSegDataset',
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='BaseSegDataset',
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img_path='images/val', seg_map_path='annotations/val'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = dict(**val_dataloader)
test_dataloader.update(
    dataset=dict(
        val_dataloader['dataset'],
        data_prefix=dict(img_path='images/test', seg_map_path='annotations/test'),
    )
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
