_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', '../_base_/mmsparse.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='small',
        regions_per_side=16,
        out_indices=(1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.2,
        norm_eval=True,  # BatchNorm, with two pictures a GPU
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/biformer-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[128, 256, 512], start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4)
)
