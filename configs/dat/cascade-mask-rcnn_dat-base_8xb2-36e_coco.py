_base_ = './cascade-mask-rcnn_dat-tiny_8xb2-36e_coco.py'

model = dict(
    backbone=dict(
        arch='base',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='checkpoints/dat-base_in1k.pth'),
    ),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
