_base_ = ['../_base_/fpn_camvid.py', '../_base_/backbones/dat-nano.py']

model = dict(
    backbone=dict(_base_.dat_nano_strided, _delete_=True),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
