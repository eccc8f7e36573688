_base_ = ['../_base_/fpn_camvid.py', '../_base_/backbones/resnet18-nano.py']

model = dict(
    backbone=dict(_base_.resnet18_nano, _delete_=True),
    neck=dict(in_channels=[24, 48, 96, 192]),
)
