_base_ = '../_base_/atss_bccd.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='nano',
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
