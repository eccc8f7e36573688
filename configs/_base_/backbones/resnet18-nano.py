# ResNet-18 of mmpretrain, mmdet and mmseg with 24 instead of 64 channels, and so with
# about the parameters of the nano backbones. Without pretrained weights.
resnet18_nano = dict(
    type='ResNet',
    depth=18,
    base_channels=24,
    stem_channels=24,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN'),
)
