_base_ = '../_base_/upernet_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.BiFormer',
        arch='nano',
        regions_per_side=8,
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
    ),
)
