_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/backbones/dat-tiny.py',
]

model = dict(
    backbone=dict(_base_.dat_tiny, _delete_=True, with_cp=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
# No code of the paper was released for this task: the recipe is that of Swin.
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
