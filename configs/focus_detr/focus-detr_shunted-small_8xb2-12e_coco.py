_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/slow_backbone.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        norm_eval=True,  # BatchNorm, with two pictures a GPU
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/shunted-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={{_base_.no_decay_in_slow_backbone}})
)
