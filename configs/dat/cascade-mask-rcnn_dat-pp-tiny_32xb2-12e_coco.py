_base_ = [
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/coco_multiscale.py',
    '../_base_/cascade_of_convolutions.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(bbox_head={{_base_.cascade_of_convolutions}}),
)
train_dataloader = dict(dataset=dict(pipeline={{_base_.multiscale_with_masks}}))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=4e-4, weight_decay=0.05),
    # Norms are not decayed, nor the tables of relative positions.
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys={'position_bias': dict(decay_mult=0.0)}
    ),
)
auto_scale_lr = dict(base_batch_size=64)
