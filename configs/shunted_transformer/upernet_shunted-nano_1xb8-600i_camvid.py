_base_ = '../_base_/upernet_camvid.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='nano',
        out_indices=(0, 1, 2, 3),
    ),
)
