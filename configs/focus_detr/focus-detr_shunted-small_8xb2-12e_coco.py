_base_ = './focus-detr_r50_8xb2-12e_coco.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='small',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        with_cp=True,
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
