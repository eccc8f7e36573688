_base_ = ['../_base_/fpn_ade20k.py', '../_base_/backbones/dat-tiny.py']

model = dict(
    backbone=dict(_base_.dat_tiny, _delete_=True),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
