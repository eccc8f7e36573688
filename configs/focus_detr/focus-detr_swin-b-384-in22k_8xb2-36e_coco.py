_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/slow_backbone.py']

release = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=384,
        embed_dims=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=12,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        with_cp=True,
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=release + 'swin_base_patch4_window12_384_22k.pth',
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={{_base_.no_decay_in_slow_backbone}})
)
train_cfg = dict(max_epochs=36)
param_scheduler = [dict(type='MultiStepLR', milestones=[30], end=36)]
