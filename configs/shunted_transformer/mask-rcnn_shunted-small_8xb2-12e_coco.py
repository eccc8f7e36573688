_base_ = ['mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', '../_base_/mmsparse.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='small',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.2,
        norm_eval=True,  # BatchNorm, with two pictures a GPU
        with_cp=True,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/shunted-small_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# The authors point to PVT v2's recipe, which has this rate.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=2e-4, weight_decay=1e-4)
)
