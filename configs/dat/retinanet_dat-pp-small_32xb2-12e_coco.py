_base_ = './retinanet_dat-pp-tiny_32xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='pp-small',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
