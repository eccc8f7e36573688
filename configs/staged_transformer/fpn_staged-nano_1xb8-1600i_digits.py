_base_ = '../_base_/fpn_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.StagedTransformer',
        arch='nano',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
    ),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
