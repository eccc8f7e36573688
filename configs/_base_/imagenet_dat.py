# DAT's recipe. Head, label smoothing, mixup, cutmix and training images are those of
# mmpretrain's Swin recipe.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
    './mmsparse.py',
]

model = dict(init_cfg=None)  # the released models keep torch's initialization

# Images are resized to a square without keeping their aspect ratio.
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
    constructor='mmsparse.BackboneOptimWrapperConstructor',
    optimizer=dict(lr=5e-4 * 4096 / 512),
    clip_grad=dict(max_norm=5.0),
    # Not by name, as Swin's recipe has it: tables of neighborhood attention do decay.
    paramwise_cfg=dict(
        _delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0
    ),
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
# Replaced, because browse_dataset.py of mmpretrain cannot build the inherited one, to
# which mmengine adds the library (`_scope_`).
visualizer = dict(
    _delete_=True,
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
