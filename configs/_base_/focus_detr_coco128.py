# A small Focus-DETR that overfits 16 photographs of COCO128 on one CPU core: a
# check of the detector and its losses, not a model to use.
_base_ = ['./focus_detr_small.py', './coco128.py']

# Photographs with one to three objects, none smaller than a fifth of the image.
_indices = [2, 3, 4, 5, 10, 11, 14, 15, 18, 45, 55, 69, 91, 94, 108, 109]
_load = dict(type='LoadImageFromFile')
_boxes = dict(type='LoadAnnotations', with_bbox=True)
_resize = dict(type='Resize', scale=(192, 192), keep_ratio=True)
_pack = dict(
    type='PackDetInputs',
    meta_keys=(
        *('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        'instances',
    ),
)

model = dict(
    num_queries=30,
    num_object_tokens=50,  # of 570 tokens in total
    dn_cfg=dict(group_cfg=dict(num_dn_queries=30)),
    test_cfg=dict(max_per_img=30),
)
_dataset = dict(
    type='CocoDataset',
    data_root=_base_.coco128_root,
    ann_file='annotations/boxes_train2017.json',
    data_prefix=dict(img='train2017/'),
    indices=_indices,
)
train_dataloader = dict(**_base_.coco128_train_dataloader)
train_dataloader.update(
    dataset=dict(_dataset, _delete_=True, pipeline=[_load, _boxes, _resize, _pack])
)
val_dataloader = dict(**_base_.coco128_val_dataloader)
val_dataloader.update(
    dataset=dict(
        _dataset,
        _delete_=True,
        test_mode=True,
        pipeline=[_load, _resize, _boxes, _pack],
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(max_epochs=400, val_interval=100)
default_hooks = dict(checkpoint=dict(interval=20))
