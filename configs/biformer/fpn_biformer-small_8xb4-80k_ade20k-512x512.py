_base_ = ['../_base_/fpn_aligned_ade20k.py', '../_base_/backbones/biformer-small.py']

model = dict(
    backbone=dict(
        _base_.biformer_small, _delete_=True, regions_per_side=8, drop_path_rate=0.15
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=1e-8,
        by_epoch=False,
        begin=1000,
        end=80000,
    ),
]
train_cfg = dict(val_interval=4000)
auto_scale_lr = dict(base_batch_size=32)
