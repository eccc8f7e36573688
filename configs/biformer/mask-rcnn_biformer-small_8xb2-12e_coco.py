_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/backbones/biformer-small.py',
]

model = dict(
    backbone=dict(_base_.biformer_small_coco, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=0.05),
    # By name, as released: BatchNorm between the stages is not called norm and decays.
    paramwise_cfg=dict(custom_keys={'norm': dict(decay_mult=0.0)}),
)
