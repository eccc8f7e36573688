_base_ = ['../_base_/atss_digits.py', '../_base_/dat_nano_decay.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='nano',
        out_indices=(1, 2, 3),
        out_norm='layer',
        # As in the classifier.
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
    ),
    neck=dict(in_channels=[64, 128, 256]),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.dat_nano_decay))
