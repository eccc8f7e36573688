_base_ = './mask-rcnn_dat-pp-tiny_32xb2-12e_coco.py'

model = dict(
    backbone=dict(
        arch='pp-small',
        drop_path_rate=0.5,
        init_cfg=dict(checkpoint='checkpoints/dat-pp-small_in1k.pth'),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_cfg = dict(max_epochs=36)
param_scheduler = {{_base_.schedule_3x}}
