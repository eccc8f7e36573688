_base_ = './focus-detr_biformer-nano_1xb4-4e_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.ShuntedTransformer',
        arch='nano',
        out_indices=(1, 2, 3),
    )
)
