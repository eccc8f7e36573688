_base_ = '../biformer/dino_biformer-nano_1xb8-4e_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        out_indices=(1, 2, 3),
        out_norm='layer',
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'position_bias': dict(decay_mult=0.0)})
)
