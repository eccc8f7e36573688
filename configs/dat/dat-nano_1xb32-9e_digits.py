_base_ = '../biformer/biformer-nano_1xb32-9e_digits.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        # As the other backbones start; the default is torch's own, as the release's.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'position_bias': dict(decay_mult=0.0)})
)
