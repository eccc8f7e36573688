_base_ = '../_base_/atss_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.StagedTransformer',
        arch='nano',
        out_indices=(1, 2, 3),
        out_norm='layer',
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
