# DeiT's recipe as the papers of BiFormer and Shunted Transformer follow it. Head, label
# smoothing, mixup, cutmix, pictures and what is exempt from decay are the host's Swin
# recipe, which is the same.
_base_ = [
    'mmpretrain::_base_/models/swin_transformer/tiny_224.py',
    'mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py',
    'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py',
    'mmpretrain::_base_/default_runtime.py',
    './mmsparse.py',
]

train_dataloader = dict(
    batch_size=128,
    # Each picture three times an epoch in different dress (repeated augmentation).
    sampler=dict(_delete_=True, type='RepeatAugSampler', shuffle=True),
)
# Five epochs of warm-up from 1e-6, the rate changing once an epoch.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=5),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5),
]
