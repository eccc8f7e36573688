# DeiT's recipe, as the papers of BiFormer and Shunted Transformer use it. Head, label
# smoothing, mixup, cutmix, images and weight decay are those of mmpretrain's Swin.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
    './mmsparse.py',
]

train_dataloader = dict(
    batch_size=128,
    # Repeated augmentation: every image three times per epoch.
    sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True),
)
# Five epochs of warm-up from 1e-6; the learning rate changes once per epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
# Replaced, because browse_dataset.py of mmpretrain cannot build the inherited one, to
# which mmengine adds the library (`_scope_`).
visualizer = dict(
    _delete_=True,
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
