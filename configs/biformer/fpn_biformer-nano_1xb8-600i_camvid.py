_base_ = '../_base_/fpn_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='nano',
        regions_per_side=8,
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
