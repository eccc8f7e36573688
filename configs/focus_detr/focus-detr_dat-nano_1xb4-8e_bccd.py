_base_ = ['../_base_/focus_detr_bccd.py', '../_base_/backbones/dat-nano.py']

model = dict(
    backbone=dict(_base_.dat_nano_strided, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
