_base_ = [
    './sparse-detr_r50_keep-30_8xb2-50e_coco.py',
    '../_base_/backbones/swin.py',
]

model = dict(
    backbone=dict(
        _base_.swin_tiny,
        _delete_=True,
        drop_path_rate=0.2,
        frozen_stages=1,
        with_cp=False,  # mmdet's checkpointing takes no input without gradient
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
