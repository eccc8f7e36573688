_base_ = ['../_base_/fpn_camvid.py', '../_base_/backbones/pvt-v2.py']

model = dict(
    backbone=dict(_base_.pvt_v2_nano, _delete_=True),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
