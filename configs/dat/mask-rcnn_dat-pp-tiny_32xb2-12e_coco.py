_base_ = [
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/backbones/dat-pp-tiny.py',
]

model = dict(
    backbone=dict(_base_.dat_pp_tiny, _delete_=True),
    # As in the released weights, the coarsest level is a convolution of the backbone's
    # feature map, not mmdet's pooling.
    neck=dict(in_channels=[64, 128, 256, 512], add_extra_convs='on_input'),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_with_masks}}))
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
auto_scale_lr = dict(base_batch_size=64)
