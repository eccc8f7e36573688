# COCO's panoptic data, with stuff as objects, as DETR learns it. Prefixed names, so
# that a config can also inherit the data loaders of a detector.
_base_ = './coco_multiscale.py'

panoptic_root = 'data/coco/'
_segments = dict(type='mmsparse.LoadPanopticSegments')
_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(1333, 800), keep_ratio=True),
    _segments,
    dict(
        type='PackDetInputs',
        meta_keys=(
            *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
            'instances',
        ),
    ),
]
panoptic_train_dataset = dict(
    _delete_=True,
    type='CocoPanopticDataset',
    data_root=panoptic_root,
    ann_file='annotations/panoptic_train2017.json',
    data_prefix=dict(img='train2017/', seg='annotations/panoptic_train2017/'),
    filter_cfg=dict(filter_empty_gt=False, min_size=32),  # keep images of stuff alone
    pipeline=[dict(type='LoadImageFromFile'), _segments, *_base_._augment],
)
panoptic_val_dataset = dict(
    _delete_=True,
    type='CocoPanopticDataset',
    data_root=panoptic_root,
    ann_file='annotations/panoptic_val2017.json',
    data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
    test_mode=True,
    pipeline=_test_pipeline,
)
# Boxes of things, from the panoptic annotations, of a detector that also finds stuff.
boxes_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
panoptic_evaluator = [
    dict(
        type='mmsparse.PanopticQuality',
        ann_file=panoptic_root + 'annotations/panoptic_val2017.json',
        seg_prefix=panoptic_root + 'annotations/panoptic_val2017/',
    ),
    dict(
        type='CocoMetric',
        ann_file=panoptic_root + 'annotations/instances_val2017.json',
        metric=['bbox', 'segm'],
    ),
]
