_base_ = ['../_base_/fpn_ade20k.py', '../_base_/dat_without_decay.py']

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmsparse.DAT',
        arch='pp-tiny',
        out_indices=(0, 1, 2, 3),
        out_norm='layer',
        drop_path_rate=0.4,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='checkpoints/dat-pp-tiny_in1k.pth',
            prefix='backbone.',
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
# 32 pictures a step for 40,000 iterations: the paper calls it 80k, for 16 pictures.
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(custom_keys={{_base_.without_decay}}),
)
param_scheduler = [dict(type='PolyLR', power=0.9, end=40000, by_epoch=False)]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
auto_scale_lr = dict(base_batch_size=32)
