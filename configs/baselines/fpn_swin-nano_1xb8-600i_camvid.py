_base_ = ['../_base_/fpn_camvid.py', '../_base_/backbones/swin-nano.py']

model = dict(
    # Crops have feature maps of 64, 32, 16 and 8 tokens per side.
    backbone=dict(_base_.swin_nano, _delete_=True, window_size=8),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
optim_wrapper = dict(paramwise_cfg=_base_.swin_nano_decay)
