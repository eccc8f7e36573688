_base_ = ['./focus-detr_r50_8xb2-12e_coco.py', '../_base_/slow_backbone.py']

release = 'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/'
model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.1,
        out_indices=(1, 2, 3),
        with_cp=True,
        convert_weights=True,
        init_cfg=dict(
            type='Pretrained', checkpoint=release + 'swin_tiny_patch4_window7_224.pth'
        ),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={{_base_.no_decay_in_slow_backbone}})
)
