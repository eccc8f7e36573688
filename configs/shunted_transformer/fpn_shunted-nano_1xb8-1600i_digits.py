_base_ = ['../_base_/fpn_digits.py', '../_base_/backbones/shunted-nano.py']

model = dict(
    backbone=dict(_base_.shunted_nano, _delete_=True),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
