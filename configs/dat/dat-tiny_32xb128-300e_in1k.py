# Head, label smoothing, mixup, cutmix and training pictures are the host's Swin recipe,
# which is DAT's too.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
    '../_base_/mmsparse.py',
]

model = dict(
    backbone=dict(_delete_=True, type='mmsparse.DAT', arch='tiny', drop_path_rate=0.2),
    init_cfg=None,  # the released models start from torch's own initialization
)

# For evaluation the whole picture is squeezed into a square, its sides' ratio not kept.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(256, 256), backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=128)
val_dataloader = dict(batch_size=128, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(
    optimizer=dict(lr=5e-4 * 4096 / 512),
    clip_grad=dict(max_norm=5.0),
    # The tables of relative positions; norms and biases are in the base.
    paramwise_cfg=dict(custom_keys={'position_bias': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-6 * 4096 / 512,
        begin=20,
        end=300,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(base_batch_size=4096)
