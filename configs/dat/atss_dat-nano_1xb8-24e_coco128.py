_base_ = ['../_base_/atss_coco128.py', '../_base_/backbones/dat-nano.py']

model = dict(
    backbone=dict(_base_.dat_nano_strided, _delete_=True, out_indices=(1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256]),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
