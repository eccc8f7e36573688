_base_ = '../biformer/fpn_biformer-nano_1xb8-1600i_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='nano',
        out_indices=(0, 1, 2, 3),
    )
)
