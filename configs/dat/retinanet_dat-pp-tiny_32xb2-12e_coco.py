_base_ = [
    'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/backbones/dat-pp-tiny.py',
]

model = dict(
    backbone=dict(_base_.dat_pp_tiny, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_with_boxes}}))
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(base_batch_size=64)
