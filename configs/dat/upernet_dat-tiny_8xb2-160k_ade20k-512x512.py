_base_ = ['../_base_/upernet_ade20k.py', '../_base_/backbones/dat-tiny.py']

model = dict(backbone=dict(_base_.dat_tiny, _delete_=True, with_cp=True))
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
