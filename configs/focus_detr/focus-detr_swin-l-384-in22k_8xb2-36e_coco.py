_base_ = './focus-detr_r50_8xb2-12e_coco.py'

release = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        pretrain_img_size=384,
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        drop_path_rate=0.2,
        out_indices=(1, 2, 3),
        with_cp=True,
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint=release + 'swin_large_patch4_window12_384_22k.pth',
        ),
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)
max_epochs = 36
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(
        type='MultiStepLR',
        begin=0,
        end=max_epochs,
        by_epoch=True,
        milestones=[30],
        gamma=0.1,
    )
]
