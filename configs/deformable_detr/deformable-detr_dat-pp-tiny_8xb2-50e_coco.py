_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    '../_base_/mmsparse.py',
    '../_base_/slow_backbone.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.1,
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4),  # the host's 2e-4 is for 32 pictures a step
    paramwise_cfg=dict(
        custom_keys={{_base_.no_decay_in_slow_backbone}}, norm_decay_mult=0.0
    ),
)
auto_scale_lr = dict(base_batch_size=16)
