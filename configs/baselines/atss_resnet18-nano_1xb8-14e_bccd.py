_base_ = ['../_base_/atss_bccd.py', '../_base_/backbones/resnet18-nano.py']

model = dict(
    backbone=dict(_base_.resnet18_nano, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[48, 96, 192]),
)
