_base_ = ['../_base_/atss_bccd.py', '../_base_/backbones/pvt-v2.py']

model = dict(
    backbone=dict(_base_.pvt_v2_nano, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256]),
)
