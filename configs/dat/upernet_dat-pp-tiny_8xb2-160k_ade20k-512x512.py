_base_ = ['../_base_/upernet_ade20k.py', '../_base_/backbones/dat-pp-tiny.py']

model = dict(
    backbone=dict(_base_.dat_pp_tiny, _delete_=True, drop_path_rate=0.3),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(constructor='mmsparse.BackboneOptimWrapperConstructor')
