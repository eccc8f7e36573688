_base_ = './fpn_dat-pp-tiny_8xb4-40k_ade20k-512x512.py'

model = dict(
    backbone=dict(
        arch='pp-small',
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
