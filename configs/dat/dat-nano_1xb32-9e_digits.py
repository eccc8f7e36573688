_base_ = '../biformer/biformer-nano_1xb32-9e_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        # With torch's own initialisation, the default, it stayed at chance.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'position_bias': dict(decay_mult=0.0)})
)
