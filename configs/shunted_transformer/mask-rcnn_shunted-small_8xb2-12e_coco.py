_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/backbones/shunted-small.py',
]

model = dict(
    backbone=dict(_base_.shunted_small_coco, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# The authors refer to the recipe of PVT v2, which has this learning rate.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4)
)
