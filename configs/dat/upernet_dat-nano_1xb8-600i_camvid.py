_base_ = ['../_base_/upernet_camvid.py', '../_base_/backbones/dat-nano.py']

model = dict(
    backbone=dict(_base_.dat_nano_strided, _delete_=True),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
