_base_ = ['../_base_/fpn_aligned_ade20k.py', '../_base_/backbones/shunted-small.py']

model = dict(
    backbone=dict(_base_.shunted_small, _delete_=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
