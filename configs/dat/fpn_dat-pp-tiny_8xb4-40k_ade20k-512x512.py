_base_ = ['../_base_/fpn_ade20k.py', '../_base_/backbones/dat-pp-tiny.py']

model = dict(
    backbone=dict(_base_.dat_pp_tiny, _delete_=True, drop_path_rate=0.4, with_cp=False),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# Batch size 32 for 40,000 iterations, which the paper calls 80k, for batch size 16.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(lr=2e-4),
)
param_scheduler = [dict(type='PolyLR', power=0.9, end=40000, by_epoch=False)]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(base_batch_size=32)
