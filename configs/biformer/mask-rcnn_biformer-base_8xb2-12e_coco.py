_base_ = './mask-rcnn_biformer-small_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.3,
        init_cfg=dict(checkpoint='checkpoints/biformer-base_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
