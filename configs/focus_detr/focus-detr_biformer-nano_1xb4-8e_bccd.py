_base_ = '../_base_/focus_detr_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='nano',
        regions_per_side=4,
        out_indices=(1, 2, 3),
        out_norm='layer',
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
