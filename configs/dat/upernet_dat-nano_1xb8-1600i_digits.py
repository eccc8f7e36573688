_base_ = [
    '../_base_/upernet_digits.py',
    '../_base_/dat_nano_decay.py',
    '../_base_/backbones/dat-nano.py',
]

model = dict(
    backbone=dict(_base_.dat_nano, _delete_=True),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=_base_.dat_nano_decay))
